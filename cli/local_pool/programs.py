"""The processes of a pool: one `Service` each, with its readiness check."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from enum import IntEnum
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from app.api_keys import KEYS_REMEDY, check_exposure, read_keys
from app.pool_file import NamedVersion
from app.server_errors import ConfigurationError
from app.settings import ControllerSettings, PoolSettings, Settings, WorkerSettings, load
from app.whole_file import replace_file
from app.worker_record import MANAGER, UP
from cli.commands.flower_command import check_login
from cli.local_pool import redis_server as pool_redis
from cli.local_pool.desired_state import Worker
from cli.local_pool.leash import SERVICES
from cli.local_pool.present_state import PROBE_TIMEOUT_S, local_workers, redis_answers
from modelyard.commands.controller_option import local_url
from workers.process import fork_client

LOOPBACK = "127.0.0.1"
FLOWER_PORT = 5555
MLFLOW_PORT = 5000
# Variables of all workers.
COMMON_VARIABLES = (
    "MODEL_NAME",
    "MODEL_VERSION",
    "WORKER",
    MANAGER,
    fork_client.VARIABLE,
    "PYTHONUNBUFFERED",
)
# Imported once for all workers: what each of them needs, and look-ups. Libraries of models follow on demand.
FORKED_IMPORTS = (
    *("workers.main", "workers.process.supervised_fork", "mlflow"),
    # imported by Celery when it starts
    *("celery.apps.worker", "celery.worker.components", "celery.worker.autoscale", "celery.concurrency.solo"),
    *("celery.app.control", "celery.events.receiver", "celery.fixups.django", "celery.loaders.app"),
    *("celery.worker.consumer.delayed_delivery", "kombu.pidbox"),
    *("celery.app.events", "celery.app.log", "celery.backends.base", "billiard.dummy", "billiard.pool"),
)
DATABASE_IMPORTS = (
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "alembic.command",
)
MODELYARD = (sys.executable, "-P", "-m", "cli")  # -P: ignore a folder named cli in the working directory


class Tier(IntEnum):
    """Services of a tier stop together, and the highest tier stops first."""

    REDIS = 1
    FORK_SERVER = 2
    WORKERS = 3
    CONTROLLERS = 4
    VIEWS = 5


@dataclass(frozen=True)
class Service:
    """One process of the pool.

    Attributes:
        name: Unique; also the name of its log file.
        is_ready: Readiness check, called with its process id.
        environment: Variables in addition to the inherited ones.
        secrets: Variables that all services of the pool inherit and that are never written to a file.
        url: Address for people, if any.
        listens: Host and port that must be free before, if any, and the variable that changes the port.
        stop_wait_s: Seconds it may take to stop before it is killed.
    """

    name: str
    tier: Tier
    command: tuple[str, ...]
    is_ready: Callable[[int], bool]
    _: KW_ONLY
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    url: str = ""
    listens: tuple[str, int, str] | None = None
    stop_wait_s: int = 10


def redis_service(settings: ControllerSettings) -> Service:
    """The pool's own Redis server.

    Raises:
        ConfigurationError: No usable binary, or the state directory cannot be written.
    """
    server = pool_redis.find_server(settings)
    try:
        config = pool_redis.write_config(settings)
    except OSError as error:
        raise pool_redis.unwritable(settings.state_dir, error) from None
    return Service(
        "redis",
        Tier.REDIS,
        (str(server), str(config)),
        is_ready=lambda pid: redis_answers(settings.effective_redis_url),
    )


def controller_services(
    settings: ControllerSettings, count: int, views: Sequence[Service] = ()
) -> list[Service]:
    """Controllers on consecutive ports, the first one on the port of the settings.

    Args:
        settings: Their settings.
        count: Number of controllers.
        views: Programs whose pages they link, unless the settings name others.

    Raises:
        ConfigurationError: They would let strangers in.
    """
    check_exposure("the controller", settings.host, bool(read_keys(settings)), KEYS_REMEDY, settings)
    links = {view.name: view.url for view in views} | settings.links
    return [
        _controller(settings, number, settings.port + number - 1, links) for number in range(1, count + 1)
    ]


def _controller(settings: ControllerSettings, number: int, port: int, links: Mapping[str, str]) -> Service:
    url = controller_url(settings, port)
    # A local pool has no load balancer that must detect the stop; users with one set the variable.
    lame_duck_s = settings.lame_duck_s if "lame_duck_s" in settings.model_fields_set else 0
    return Service(
        "controller" if number == 1 else f"controller-{number}",
        Tier.CONTROLLERS,
        (*MODELYARD, "serve"),
        is_ready=lambda pid: http_answers(f"{url}/healthz"),
        environment={
            "MODELYARD_HOST": settings.host,
            "MODELYARD_PORT": str(port),
            "MODELYARD_LAME_DUCK_S": str(lame_duck_s),
            **{f"MODELYARD_{name.upper()}_URL": address for name, address in links.items()},
        },
        url=url,
        listens=(settings.host, port, "MODELYARD_PORT"),
        stop_wait_s=math.ceil(lame_duck_s + settings.drain_s) + 10,
    )


def controller_url(settings: ControllerSettings, port: int | None = None) -> str:
    """Address at which this machine reaches a controller."""
    return local_url(settings.host, port or settings.port)


def forks(settings: PoolSettings) -> bool:
    """Whether workers are forks of one process; only Linux has what that needs."""
    return settings.fork_server and sys.platform == "linux"


def fork_service(settings: PoolSettings) -> Service:
    """The process of which workers are forks; they start without it if it is away."""
    path = _fork_socket(settings)
    imports: tuple[str, ...] = FORKED_IMPORTS
    if not settings.mlflow_tracking_uri.startswith("http"):
        imports += DATABASE_IMPORTS
    n_threads = os.environ.get("OMP_NUM_THREADS") or str(load(WorkerSettings).torch_threads)
    return Service(
        "fork-server",
        Tier.FORK_SERVER,
        (sys.executable, "-P", "-m", "workers.process.fork_server", str(path), *imports),
        is_ready=lambda pid: _listens(path),  # it imports for seconds; its clients wait for that themselves
        # libraries read the number of threads when they are loaded
        environment={"OMP_NUM_THREADS": n_threads},
    )


def _fork_socket(settings: Settings) -> Path:
    return settings.state_dir.resolve() / "forks.sock"


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def worker_service(settings: PoolSettings, worker: Worker) -> Service:
    """A worker of a version.

    Args:
        settings: Settings of the pool that must see a worker before it counts as ready.
        worker: Its name, version and options.
    """
    return Service(
        worker.name,
        Tier.WORKERS,
        tuple(fork_client.client_command("workers")) if forks(settings) else (*MODELYARD, "worker"),
        # a worker of a retired version that still has jobs is ready for a moment only
        is_ready=lambda pid: (
            (record := local_workers(settings.effective_redis_url).get(pid)) is not None
            and record.state != "starting"
        ),
        # the caller's WORKER variable cannot be the number of several versions
        environment={
            "MODEL_NAME": worker.named.model,
            "MODEL_VERSION": str(worker.named.version),
            "WORKER": "",
            MANAGER: UP,
            **({fork_client.VARIABLE: str(_fork_socket(settings))} if forks(settings) else {}),
            **dict(worker.variables),
        },
        stop_wait_s=30,
    )


def write_services(folder: Path, services: Iterable[Service]) -> None:
    """Write the start command of each service for its leash, with the current folder as its working directory."""
    rows = {
        service.name: {
            "command": service.command,
            "environment": {**service.environment, "PYTHONUNBUFFERED": "1"},
            "folder": str(Path.cwd()),
        }
        for service in services
    }
    # Whole, because a service that restarts reads the file at any moment.
    replace_file(folder / SERVICES, json.dumps(rows, indent=1).encode())


def present_workers(settings: Settings) -> list[Worker]:
    """The workers of the pool that runs in the state directory."""
    try:
        rows = json.loads((settings.state_dir / SERVICES).read_text())
    except (OSError, ValueError):
        return []
    found = []
    for name, row in rows.items():
        variables = {
            key: row["environment"][key] for key in row["environment"] if key not in COMMON_VARIABLES
        }
        if "MODEL_VERSION" in row["environment"]:
            named = NamedVersion(row["environment"]["MODEL_NAME"], int(row["environment"]["MODEL_VERSION"]))
            found.append(Worker(name, named, tuple(variables.items())))
    return found


def flower_service(settings: ControllerSettings) -> Service:
    """Flower, as `modelyard flower` runs it.

    Raises:
        ConfigurationError: It would let strangers in.
    """
    host, port = os.environ.get("FLOWER_ADDRESS") or LOOPBACK, port_of("FLOWER_PORT", FLOWER_PORT)
    check_login(settings, host, bool(os.environ.get("FLOWER_BASIC_AUTH") or os.environ.get("FLOWER_AUTH")))
    url = local_url(host, port)
    return Service(
        "flower",
        Tier.VIEWS,
        (*MODELYARD, "flower"),
        is_ready=lambda pid: http_answers(url),
        url=url,
        listens=(host, port, "FLOWER_PORT"),
    )


def mlflow_service(settings: ControllerSettings) -> Service:
    """MLflow's user interface and registry server on a database of this machine.

    Raises:
        ConfigurationError: It would let strangers in.
    """
    host, port = os.environ.get("MLFLOW_HOST") or LOOPBACK, port_of("MLFLOW_PORT", MLFLOW_PORT)
    check_exposure(
        "MLflow", host, False, "run a server with a login, and set MLFLOW_TRACKING_URI to it", settings
    )
    url = local_url(host, port)
    return Service(
        "mlflow",
        Tier.VIEWS,
        (
            *(sys.executable, "-P", "-m", "mlflow", "server"),
            *("--host", host, "--port", str(port), "--workers", "1"),
        ),
        is_ready=lambda pid: http_answers(f"{url}/health"),
        # its job runner serves language-model evaluations, and costs several processes
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        # other users of the machine can read command lines, and perhaps supervisord's configuration
        secrets={"MLFLOW_BACKEND_STORE_URI": settings.mlflow_tracking_uri},
        # the list of models; MLflow's default page is about language models
        url=f"{url}/#/models",
        listens=(host, port, "MLFLOW_PORT"),
    )


def port_of(variable: str, default: int) -> int:
    """A port from the environment.

    Raises:
        ConfigurationError: The variable holds something else.
    """
    value = os.environ.get(variable) or str(default)
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise ConfigurationError(f"{variable}={value!r} is not a port; expected a number from 1 to 65535")
    return int(value)


def http_answers(url: str) -> bool:
    """Whether a server answers, even if it asks for a password."""
    # Called many times a second during the start, so it uses only the standard library.
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", where.path or "/")
        return connection.getresponse().status < 500
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
