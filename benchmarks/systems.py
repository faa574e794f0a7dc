"""The compared systems: how each is started, what is posted to it, and how to recognise a correct answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
LOOPBACK = "127.0.0.1"
OWN_CLASS = '"prediction":%s*(%d)'  # the answer of the servers in peers/
UVICORN = (
    "--workers",
    "1",
    "--loop",
    "uvloop",
    "--http",
    "httptools",
    "--no-access-log",
    "--log-level",
    "warning",
)
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # the model is too small for more threads
MODELYARD_LABELS = (
    ("redis-server", "redis"),
    ("cli serve", "controller"),
    ("large_bodies", "reader"),
    ("cli worker", "worker"),
    ("workers.process.fork_server", "worker"),
    ("envs/versions", "worker"),
    ("supervisord", "supervisor"),
    ("modelyard up", "supervisor"),
)
MOSEC_LABELS = (("mosec/bin/mosec", "front end"), ("spawn_main", "worker"), ("mosec_server", "manager"))

Sample = list[Any]


@dataclass(frozen=True)
class Place:
    """Where a system runs.

    Attributes:
        bin: Folder of its environment's programs.
        port: Port to listen on.
        spare_port: Another free port.
        folder: Its scratch folder; short, for sockets.
        workload: Name of the workload.
        n_workers: Number of workers, for systems that have a choice.
        model: The model for the servers in peers/.
        tracking_uri: MLflow registry that holds the same model as version 1.
        model_name: Its name there.
    """

    bin: Path
    port: int
    spare_port: int
    folder: Path
    model: Path
    tracking_uri: str
    workload: str = "perceptron"
    n_workers: int = 2
    model_name: str = "MNIST_PyTorch_Model"

    @property
    def variables(self) -> dict[str, str]:
        """Environment of the servers in peers/."""
        return {
            "BENCH_WORKLOAD": self.workload,
            "BENCH_WORKERS": str(self.n_workers),
            "BENCH_MODEL": str(self.model),
            "BENCH_MODEL_URI": f"models:/{self.model_name}/1",
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "BENCH_PORT": str(self.port),
            "BENCH_SPARE_PORT": str(self.spare_port),
            **ONE_THREAD,
        }


@dataclass(frozen=True)
class Command:
    """One process to start."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class System:
    """One system of the comparison.

    Attributes:
        about: Its configuration, in a few words.
        environment: Folder in peers/ with its requirements; empty for the project's own environment.
        packages: Packages whose versions are reported.
        commands: Processes to start.
        path: Path to post to.
        body: Creates the request body of one sample.
        class_pattern: Lua pattern that captures the class, or a list of scores, in an answer; empty for no check.
        labels: Pairs of a part of a command line and the name of that process.
        accept_path: Path that answers 202 before the outcome; empty if there is none.
    """

    name: str
    about: str
    environment: str
    packages: tuple[str, ...]
    commands: Callable[[Place], list[Command]]
    path: str = "/predict"
    body: Callable[[Sample], dict[str, Any]] = field(default=lambda sample: {"data": sample})
    class_pattern: str = OWN_CLASS
    labels: tuple[tuple[str, str], ...] = ()
    accept_path: str = ""


def _modelyard(place: Place, replicas: int = 1) -> list[Command]:
    environment = {
        "MODELYARD_STATE_DIR": str(place.folder / "yard"),
        "MODELYARD_PORT": str(place.port),
        "MLFLOW_TRACKING_URI": place.tracking_uri,
        "MODEL_NAME": place.model_name,
        "REDIS_URL": "",
        **ONE_THREAD,
    }
    # MLflow loads it by code, and Modelyard's own environment lacks its libraries.
    if place.workload == "text":
        environment["MODELYARD_ALLOW_PICKLE_MODELS"] = "true"
        environment["MODELYARD_ENV_MANAGER"] = "uv"
        environment["MODELYARD_ENVIRONMENTS_DIR"] = str(Path(__file__).parent / ".envs" / "versions")
    arguments = ["up", "--versions", "1", "--no-views", "--replicas", str(replicas)]
    return [Command([str(place.bin / "modelyard"), *arguments], environment)]


def _uvicorn(place: Place, application: str, folder: Path) -> Command:
    arguments = [str(place.bin / "uvicorn"), application, "--port", str(place.port), *UVICORN]
    return Command(arguments, {**place.variables, "PYTHONPATH": os.pathsep.join([str(PEERS), str(folder)])})


def _local(application: str) -> Callable[[Place], list[Command]]:
    return lambda place: [_uvicorn(place, application, PEERS / "local")]


def _script(peer: str, *arguments: str) -> Callable[[Place], list[Command]]:
    def commands(place: Place) -> list[Command]:
        command = [str(place.bin / "python"), str(PEERS / peer / f"{peer}_server.py"), *arguments]
        return [Command(command, {**place.variables, "PYTHONPATH": str(PEERS)})]

    return commands


def _mosec(place: Place, codec: str) -> list[Command]:
    [command] = _script("mosec", "--address", LOOPBACK, "--port", str(place.port))(place)
    # The other workloads are measured with the faster codec alone, which also takes images.
    codec = codec if place.workload == "perceptron" else "orjson"
    return [Command(command.arguments, {**command.environment, "BENCH_CODEC": codec})]


def _bentoml(place: Place) -> list[Command]:
    arguments = ["serve", "bentoml_server:Model", "--host", LOOPBACK, "--port", str(place.port)]
    folder = str(PEERS / "bentoml")
    environment = {
        **place.variables,
        "PYTHONPATH": str(PEERS),
        "BENTOML_HOME": str(place.folder / "bento"),
        "BENTOML_DO_NOT_TRACK": "true",
    }
    return [Command([str(place.bin / "bentoml"), *arguments, "--working-dir", folder], environment)]


def _ray(place: Place) -> list[Command]:
    [command] = _script("ray")(place)
    environment = {
        **command.environment,
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(place.folder),
    }
    return [Command(command.arguments, environment)]


def _mlflow(place: Place) -> list[Command]:
    arguments = ["models", "serve", "-m", f"models:/{place.model_name}/1", "--env-manager", "local"]
    path = os.pathsep.join([str(place.bin), os.environ.get("PATH", "")])
    environment = {**ONE_THREAD, "MLFLOW_TRACKING_URI": place.tracking_uri, "PATH": path}
    ports = ["--host", LOOPBACK, "--port", str(place.port), "--workers", str(place.n_workers)]
    return [Command([str(place.bin / "mlflow"), *arguments, *ports], environment)]


def _celery(place: Place) -> list[Command]:
    folder = PEERS / "celery_tutorial"
    environment = {
        **place.variables,
        "PYTHONPATH": os.pathsep.join([str(PEERS), str(folder)]),
        "BENCH_REDIS": f"redis://{LOOPBACK}:{place.spare_port}",
    }
    worker = [str(place.bin / "celery"), "-A", "tasks", "worker", "--loglevel", "warning"]
    worker += ["--concurrency", str(place.n_workers)]
    redis = ["redis-server", "--port", str(place.spare_port), "--bind", LOOPBACK, "--save", ""]
    return [
        Command(redis, {}),
        Command(worker, environment),
        Command(_uvicorn(place, "jobs_server:app", folder).arguments, environment),
    ]


SYSTEMS = (
    System(
        name="modelyard",
        about="`modelyard up`: one controller, one worker, Redis with an append-only file",
        environment="",
        packages=("modelyard", "celery", "uvicorn", "torch"),
        commands=_modelyard,
        path="/predict?wait=5",
        class_pattern='"class":(%d)',
        labels=MODELYARD_LABELS,
        accept_path="/predict",
    ),
    System(
        name="modelyard-2",
        about="the same with two workers",
        environment="",
        packages=("modelyard", "torch"),
        commands=lambda place: _modelyard(place, 2),
        labels=MODELYARD_LABELS,
    ),
    System(
        name="constant",
        about="bare FastAPI handler that reads the body and returns a constant; uvloop, httptools",
        environment="",
        packages=("fastapi", "uvicorn"),
        commands=_local("constant:app"),
        class_pattern="",
        labels=(("uvicorn", "server"),),
    ),
    System(
        name="inline",
        about="bare FastAPI handler that calls the model; orjson, uvloop, httptools",
        environment="",
        packages=("fastapi", "uvicorn", "torch"),
        commands=_local("inline:app"),
        labels=(("uvicorn", "server"),),
    ),
    System(
        name="mosec",
        about="Rust front end, batches up to 64; its own JSON decoder for the perceptron, else orjson and NumPy",
        environment="mosec",
        packages=("mosec", "torch"),
        commands=lambda place: _mosec(place, "json"),
        path="/inference",
        labels=MOSEC_LABELS,
    ),
    System(
        name="mosec-orjson",
        about="as mosec, with orjson and NumPy as its JSON decoder",
        environment="mosec",
        packages=("mosec", "orjson", "torch"),
        commands=lambda place: _mosec(place, "orjson"),
        path="/inference",
        labels=MOSEC_LABELS,
    ),
    System(
        name="mlflow",
        about="`mlflow models serve`; uvloop, httptools",
        environment="mlflow",
        packages=("mlflow", "torch"),
        commands=_mlflow,
        path="/invocations",
        body=lambda sample: {"inputs": sample},
        class_pattern='"predictions":%s*%[%[(.-)%]%]',
        labels=(("", "server"),),
    ),
    System(
        name="celery-tutorial",
        about="Celery and FastAPI as in tutorials: one task per request, JSON, AsyncResult; prefork, Redis in memory",
        environment="celery_tutorial",
        packages=("celery", "fastapi", "torch"),
        commands=_celery,
        labels=(("redis-server", "redis"), ("uvicorn", "server"), ("worker", "worker")),
        accept_path="/jobs",
    ),
    System(
        name="litserve",
        about="batches up to 64 within 5 ms",
        environment="litserve",
        packages=("litserve", "torch"),
        commands=_script("litserve"),
        labels=(("litserve_server", "server and worker"), ("spawn_main", "server and worker")),
    ),
    System(
        name="mlserver",
        about="one process, without batching (slower); a custom runtime for the perceptron, else its MLflow runtime",
        environment="mlserver",
        packages=("mlserver", "mlserver-mlflow", "torch"),
        commands=_script("mlserver"),
        path="/v2/models/digits/infer",
        body=lambda sample: {
            "inputs": [{"name": "data", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": sample}]
        },
        class_pattern='"data":%s*%[(%d)%]',
        labels=(("", "server"),),
    ),
    System(
        name="bentoml",
        about="adaptive batches up to 64",
        environment="bentoml",
        packages=("bentoml", "torch"),
        commands=_bentoml,
        class_pattern="^%[?(%d)%]?$",
        labels=(("", "server"),),
    ),
    System(
        name="ray",
        about="Ray Serve, one replica, batches up to 64 within 5 ms, throughput-optimised mode",
        environment="ray",
        packages=("ray", "torch"),
        commands=_ray,
        labels=(
            ("raylet", "raylet"),
            ("gcs_server", "gcs"),
            ("ray::ServeReplica", "replica"),
            ("ray::ProxyActor", "proxy"),
        ),
    ),
)
