"""The workloads: the models, the requests that hold the same samples for each system, and the patterns of answers."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import digit_bodies, envs
from benchmarks.report import ALONE, SYNC
from benchmarks.systems import PEERS, System
from benchmarks.wrk_load import JSON

MAKE_LIMIT_S = 600
FIRST_ROW = "%s*%[%[(.-)%]"  # the numbers of the first row in nested lists
JPEG, RAW = "JPEG", "raw"
IMAGE_TYPES = {JPEG: "image/jpeg", RAW: "application/octet-stream"}
Samples = Sequence[tuple[int, Any]]


@dataclass(frozen=True)
class Made:
    """A workload's model.

    Attributes:
        tracking_uri: MLflow registry that holds it as version 1.
        name: Its registered name.
        file: The same for the servers in peers/.
        samples: By way: pairs of the label (index of the largest output for the first row) and the content.
    """

    tracking_uri: str
    name: str
    file: Path
    samples: Mapping[str, Samples]


@dataclass(frozen=True)
class Request:
    """What is posted to a system, and how to find the label in its answer."""

    path: str
    content_type: str
    bodies: list[tuple[int, bytes]]
    pattern: str


@dataclass(frozen=True)
class Workload:
    """A model and the requests to it.

    Attributes:
        about: Description for the report.
        ways: Kinds of requests, each with the numbers of connections that are measured.
        systems: Names of the systems that serve it; empty for all that serve the perceptron.
        measure_s: Seconds of each measurement, many times those of one batch.
        n_workers: Workers of each system that has a choice.
        bare_batches: Batch sizes at which the model is called without a server; empty for no such measurement.
    """

    name: str
    about: str
    ways: Mapping[str, tuple[int, ...]]
    systems: tuple[str, ...] = ()
    n_workers: int = 1
    measure_s: int = 3
    bare_batches: tuple[int, ...] = ()

    def make(self) -> Made:
        """The model, made on first use.

        Raises:
            subprocess.SubprocessError: It cannot be made.
            InstallError: The environment in which it is made cannot be made.
        """
        if self.name in (PERCEPTRON.name, LARGE.name):
            model = digit_bodies.make_model(envs.ENVIRONMENTS)
            samples = dict.fromkeys(self.ways, model.samples)
            return Made(model.tracking_uri, "MNIST_PyTorch_Model", model.file, samples)
        folder = envs.ENVIRONMENTS / "workloads" / self.name
        if not (folder / "samples.json").exists():
            print(f"making the model of the workload {self.name}", flush=True)
            python = str(envs.peer_programs("mlflow") / "python")
            command = [python, str(PEERS / "make_model.py"), self.name, str(folder)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, env=environment, check=True, timeout=MAKE_LIMIT_S)
        made = json.loads((folder / "samples.json").read_text())
        return Made(f"sqlite:///{folder}/mlruns.db", "Bench", folder / "model", made)

    def request(self, system: System, way: str, made: Made) -> Request | None:
        """What is posted to a system; None if it cannot take this way."""
        samples = made.samples[way]
        if self.name in (PERCEPTRON.name, LARGE.name):
            bodies = [(label, digit_bodies.spell(system.body(each)).encode()) for label, each in samples]
            return Request(system.path, JSON, bodies, system.class_pattern)
        spoken = DIALECTS.get(system.name, _own)(self.name, way)
        if spoken is None:
            return None
        path, content_type, encode, pattern = spoken
        return Request(
            path or system.path, content_type, [(label, encode(each)) for label, each in samples], pattern
        )


Spoken = tuple[str, str, Callable[[Any], bytes], str]  # path, content type, encoder, pattern


def _json(document: Any) -> bytes:
    return json.dumps(document).encode()


def _own(workload: str, way: str) -> Spoken:
    """The servers in peers/ that read bytes."""
    pattern = f'"predictions":{FIRST_ROW}'
    if workload == "image":
        return "", IMAGE_TYPES[way], base64.b64decode, pattern
    return "", JSON, lambda rows: _json({"data": rows}), pattern


def _own_json(workload: str, way: str) -> Spoken:
    """For systems that only read JSON: images are base64."""
    pattern = f'"predictions":{FIRST_ROW}'
    return "", JSON, lambda rows: _json({"data": [rows] if workload == "image" else rows}), pattern


def _bentoml(workload: str, way: str) -> Spoken:
    path, content_type, encode, _ = _own_json(workload, way)
    return path, content_type, encode, f"^{FIRST_ROW}"


def _frame(workload: str, rows: Any) -> bytes:
    names = TABLE if workload == "tabular" else ["text"]
    cells = rows if workload == "tabular" else [[each] for each in rows]
    return _json({"dataframe_split": {"columns": names, "data": cells}})


def _mlflow(workload: str, way: str) -> Spoken | None:
    """MLflow's scoring protocol: the pixels of an image are numbers in JSON; it has no form for JPEG."""
    pattern = f'"predictions":{FIRST_ROW}'
    if way == JPEG:
        return None
    if workload == "image":
        return "/invocations", JSON, lambda content: _json({"inputs": _pixels(content)}), pattern
    return "/invocations", JSON, lambda rows: _frame(workload, rows), pattern


def _pixels(content: str) -> Any:
    import numpy as np

    return np.frombuffer(base64.b64decode(content), np.uint8).reshape(1, 3, 224, 224).tolist()


def _modelyard(workload: str, way: str) -> Spoken:
    path = "/predict?wait=30"
    if workload == "image":
        return path, IMAGE_TYPES[way], base64.b64decode, '"class":(%d+)'
    return path, JSON, lambda rows: _frame(workload, rows), f'"outputs":{FIRST_ROW}'


DIALECTS: dict[str, Callable[[str, str], Spoken | None]] = {
    "modelyard": _modelyard,
    "modelyard-2": _modelyard,
    "mlflow": _mlflow,
    "mlserver": _mlflow,
    "litserve": _own_json,
    "celery-tutorial": _own_json,
    "bentoml": _bentoml,
}
TABLE = [
    *(f"measure_{i}" for i in range(14)),
    *(f"price_{i}" for i in range(4)),
    *(f"count_{i}" for i in range(6)),
    *(f"category_{i}" for i in range(4)),
    *(f"flag_{i}" for i in range(2)),
]
PEER_NAMES = ("mosec", "mlflow", "mlserver", "litserve", "bentoml", "ray", "celery-tutorial")

PERCEPTRON = Workload("perceptron", "", {SYNC: (1, 64, 256)}, n_workers=2)
TABULAR = Workload(
    "tabular",
    "LightGBM, 102 trees, 30 columns (double, float, long, categories as long, boolean), a tenth of the values of six "
    "columns missing, JSON.",
    {"1 row": (1, 64), "100 rows": (64,)},
    ("modelyard", *PEER_NAMES),
    n_workers=2,
)
IMAGE = Workload(
    "image",
    "ResNet-18, 1,000 classes, uint8 pixels of 3x224x224: a JPEG, or the raw pixels. MLflow and MLServer get the "
    "pixels as JSON; LitServe, BentoML and Celery get both as base64.",
    {JPEG: (16,), RAW: (1, 16)},
    ("modelyard", "modelyard-2", *PEER_NAMES),
    measure_s=8,
    bare_batches=(1, 4, 8, 16),
)
TEXT = Workload(
    "text",
    "all-MiniLM-L6-v2 with sentence-transformers, one sentence of about 20 words, 384 numbers in the answer.",
    {"1 sentence": (1, 32)},
    ("modelyard", "modelyard-2", *PEER_NAMES),
    measure_s=5,
    bare_batches=(1, 8, 16, 32),
)
LARGE = Workload(
    "large",
    "The perceptron, one digit a request; alone, and while one more connection posts JSON bodies of 8 MiB "
    "(1,024 digits).",
    {ALONE: (16,), "beside 8 MiB": (16,)},
    ("modelyard",),
)
WORKLOADS = {each.name: each for each in (PERCEPTRON, TABULAR, IMAGE, TEXT, LARGE)}
REAL = (TABULAR, IMAGE, TEXT, LARGE)
