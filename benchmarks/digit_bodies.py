"""The model that all systems serve, and the digits that are posted to them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.systems import System

DECIMALS = 4
DIGITS_PER_CLASS = 8
CLASSES = (3, 7)  # one per thread of wrk
TRAIN_LIMIT_S = 300


@dataclass(frozen=True)
class Model:
    """The model.

    Attributes:
        tracking_uri: MLflow registry that holds it as version 1.
        file: The same as a file of `torch.export`.
        samples: Class that the model predicts, and a sample, shape (1, 1, 28, 28), as nested lists.
    """

    tracking_uri: str
    file: Path
    samples: list[tuple[int, list[Any]]]


def make_model(folder: Path) -> Model:
    """Train the perceptron into a registry of the benchmark's own, once, and choose digits for it.

    Raises:
        subprocess.SubprocessError: The training failed.
    """
    registry = folder / "registry"
    tracking_uri = f"sqlite:///{registry}/mlruns.db"
    found = sorted(registry.glob("mlruns/**/model.pt2"))
    if not found:
        print("training the model", flush=True)
        registry.mkdir(parents=True, exist_ok=True)
        modelyard = Path(sys.executable).with_name("modelyard")
        environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
        command = [str(modelyard), "train", "--arch", "mlp"]
        subprocess.run(
            command,
            cwd=registry,
            env=environment,
            check=True,
            timeout=TRAIN_LIMIT_S,
            stdout=subprocess.DEVNULL,
        )
        found = sorted(registry.glob("mlruns/**/model.pt2"))
    return Model(tracking_uri, found[0], _samples(found[0]))


def _samples(model: Path) -> list[tuple[int, list[Any]]]:
    """Digits that the model assigns to one of `CLASSES` with confidence, rounded as they are posted."""
    import torch

    from modelyard.digits import load_digits_28

    images = load_digits_28()[0].round(DECIMALS)
    network = torch.export.load(model).module()
    with torch.inference_mode():
        scores = network(torch.from_numpy(images)).numpy()
    chosen = []
    for label in CLASSES:
        sure = [index for index in scores[:, label].argsort()[::-1] if scores[index].argmax() == label]
        chosen += [
            (label, images[[index]].astype(float).round(DECIMALS).tolist())
            for index in sure[:DIGITS_PER_CLASS]
        ]
    return chosen


def write_bodies(system: System, model: Model, path: Path) -> None:
    """Write the bodies for a system as lines `class<TAB>JSON`."""
    lines = [f"{label}\t{spell(system.body(sample))}\n" for label, sample in model.samples]
    path.write_text("".join(lines))


def spell(body: dict[str, Any]) -> str:
    """A body as JSON with all decimals of every pixel, so that all bodies take the same time to parse."""
    return re.sub(r"\d\.\d+", lambda found: f"{float(found[0]):.{DECIMALS}f}", json.dumps(body))
