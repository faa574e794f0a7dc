"""`python -m tests.light_registry FOLDER`: an MLflow registry with two versions of an ONNX model.

For pools to which the kind of model does not matter: a worker of it imports neither MLflow nor PyTorch.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

MODEL = "Light"
VAL_ACCURACIES = (0.8, 0.9)  # of versions 1 and 2
PAIR = np.array([[1.0, 2.0]])
DOUBLED = {"y": [[2.0, 4.0]]}  # the answer to it


def lay_out(folder: Path) -> None:
    """Register the versions in another process: MLflow changes the state of its own. Version 2 is `champion`."""
    command = [sys.executable, "-m", "tests.light_registry", str(folder)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, timeout=150)


def variables(folder: Path) -> dict[str, str]:
    """For processes of a pool that serves the model."""
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlruns.db",
        "MODEL_NAME": MODEL,
    }


def doubling_pairs() -> Any:
    """The ONNX model: float64, shape (n, 2)."""
    from onnx import TensorProto, helper

    given, answered = (
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["n", 2]) for name in ("x", "y")
    )
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "graph", [given], [answered])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def register(n_features: int, val_accuracy: float) -> None:
    """Register a version in MLflow's present registry; with other than two features it fails its warm-up."""
    import mlflow.onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", val_accuracy)
        mlflow.onnx.log_model(
            doubling_pairs(),
            name="model",
            signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype("float64"), (-1, n_features))])),
            registered_model_name=MODEL,
            pip_requirements=["onnxruntime"],
        )


def _main(folder: Path) -> None:
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlruns.db")
    mlflow.create_experiment("light", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("light")
    for val_accuracy in VAL_ACCURACIES:
        register(2, val_accuracy)
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", "2")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _main(Path(sys.argv[1]))
