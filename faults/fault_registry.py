"""`python -m faults.fault_registry FOLDER`: an MLflow registry with two versions of `faults/fault_models.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

MODEL = "Faulty"
VAL_ACCURACIES = (0.9, 0.8)  # of versions 1 and 2


def tracking_uri(folder: Path) -> str:
    """URI of the registry in a folder."""
    return f"sqlite:///{folder}/mlruns.db"


def lay_out(folder: Path) -> None:
    """Create the registry in a separate process: MLflow takes seconds to import and changes global state."""
    not_its_own = ("MLFLOW_", "COVERAGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(not_its_own)}
    subprocess.run(
        [sys.executable, "-m", "faults.fault_registry", str(folder)],
        env=environment,
        check=True,
        capture_output=True,
        cwd=Path(__file__).resolve().parents[1],
    )


def _register(folder: Path) -> None:
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    mlflow.set_tracking_uri(tracking_uri(folder))
    mlflow.create_experiment("faults", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("faults")
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("float64"), (-1, 4))]),
        outputs=Schema([TensorSpec(np.dtype("float64"), (-1, 10))]),
    )
    for val_accuracy in VAL_ACCURACIES:
        with mlflow.start_run():
            mlflow.log_metric("val_accuracy", val_accuracy)
            mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("fault_models.py")),
                signature=signature,
                registered_model_name=MODEL,
                pip_requirements=["numpy"],
            )


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _register(Path(sys.argv[1]))
