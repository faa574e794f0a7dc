"""A real MLflow registry, laid out once: good models, and some that cannot be served."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tests import light_registry
from tests.pool_samples import RedisServer
from tests.workers import unruly_model
from tests.workers.runner_bench import Bench
from tests.workers.worker_processes import Start

MODEL = "Scikit"
ODD_REQUIREMENTS = [
    f"scikit-learn=={int(version('scikit-learn').split('.')[0]) + 1}.0.0",
    "no-such-package-here==1.0",
]


@pytest.fixture(scope="session")
def registry(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Tracking URI: version 1 is good, 2 takes complex numbers, 3 a fixed number of samples, 4 fails its warm-up.

    The model `Named` answers a dictionary of one output; `Echo` answers its samples, NaN for each 666, version 1 in
    float64 and 2 in int64; `Light` doubles pairs of numbers in version 1, and fails its warm-up in 2; `Odd` requires
    packages that are not here; the model `Emptied` has no version; `Unruly` is `tests/workers/unruly_model.py`.
    """
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_database, folder / "mlruns.db")
    uri = f"sqlite:///{folder}/mlruns.db"
    before = os.environ.get("MLFLOW_TRACKING_URI")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _register(uri, folder)
    yield uri
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", None)  # set by each load of a model


def _register(uri: str, folder: Path) -> None:
    import mlflow
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from sklearn.linear_model import LogisticRegression

    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("tests")
    inputs = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    fitted = LogisticRegression().fit(inputs, np.array([3, 3, 8, 8]))

    class NamedOutput(mlflow.pyfunc.PythonModel):  # in a function, so that it is pickled by value
        def predict(self, context: object, model_input: np.ndarray) -> dict[str, np.ndarray]:
            return {"sum": model_input.sum(axis=1)}

    def shape(*sizes: int, dtype: str = "float64") -> ModelSignature:
        return ModelSignature(inputs=Schema([TensorSpec(np.dtype(dtype), sizes)]))

    for model, signature in (
        (fitted, shape(-1, 2)),
        (fitted, shape(-1, 2, dtype="complex64")),
        (fitted, shape(4, 2)),
        (fitted, shape(-1, 3)),
    ):
        with mlflow.start_run():
            mlflow.log_metric("val_accuracy", 0.75)
            mlflow.sklearn.log_model(
                model,
                name="model",
                signature=signature,
                registered_model_name=MODEL,
                pip_requirements=["scikit-learn"],
                serialization_format="cloudpickle",
            )
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            fitted,
            name="model",
            signature=shape(-1, 2),
            registered_model_name="Odd",
            pip_requirements=ODD_REQUIREMENTS,
            serialization_format="cloudpickle",
        )
    for n_features in (2, 3):
        light_registry.register(n_features, 0.75)
    mlflow.MlflowClient().set_registered_model_alias(light_registry.MODEL, "champion", "1")
    mlflow.MlflowClient().set_registered_model_alias(MODEL, "champion", "1")
    mlflow.MlflowClient().create_registered_model("Emptied")
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=NamedOutput(),
            signature=shape(-1, 2),
            registered_model_name="Named",
            pip_requirements=["numpy"],
        )
    with mlflow.start_run():
        mlflow.log_metric("val_accuracy", 0.75)
        mlflow.pyfunc.log_model(
            name="model",
            python_model=unruly_model.__file__,
            signature=shape(-1, 2),
            registered_model_name="Unruly",
            pip_requirements=["numpy"],
        )

    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context: object, model_input: np.ndarray) -> np.ndarray:
            if model_input.dtype.kind == "f":
                model_input[model_input == 666] = np.nan
            return model_input

    for dtype in ("float64", "int64"):
        with mlflow.start_run():
            mlflow.pyfunc.log_model(
                name="model",
                python_model=Echo(),
                signature=ModelSignature(inputs=Schema([TensorSpec(np.dtype(dtype), (-1, 3))])),
                registered_model_name="Echo",
                pip_requirements=["numpy"],
            )


@pytest.fixture
def start_worker(redis_server: RedisServer, registry: str) -> Iterator[Start]:
    """`start_worker(version, **variables)` starts a worker of the registry, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(version: str, **variables: str) -> subprocess.Popen[str]:
        own = {
            "REDIS_URL": redis_server.url,
            "MLFLOW_TRACKING_URI": registry,
            "MODEL_NAME": "Scikit",
            "MODEL_VERSION": version,
            "MODELYARD_HEARTBEAT_S": "0.5",  # a worker is alive for 1.5 s, which a busy machine may take
            "ALLOW_PICKLE_MODELS": "true",  # the registry's scikit-learn models are pickled
        }
        command = [sys.executable, "-m", "workers"]
        started.append(
            subprocess.Popen(
                command,
                env=os.environ | own | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def bench(redis_server: RedisServer) -> Iterator[Bench]:
    """A batch runner's surroundings on the test's Redis."""
    made = Bench(redis_server.url)
    yield made
    made.client.close()
