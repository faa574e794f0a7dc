"""The only file that writes to MLflow: runs, models, versions, the champion alias. `training.inventory` reads them.

A version is logged in MLflow's ``pt2`` format (a graph of ``torch.export``), so that loading it uses no pickle and
none of this package's code.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

import numpy as np

from app.quality import CORRECT, MOST_ROWS, ROWS_TAG, VAL_ACCURACY
from modelyard.digits import CLASSES, SIDE_PIXELS
from training.architectures import Classifier
from training.datasets import Dataset, Split
from training.figures import confusion_matrix, learning_curve
from training.fit import EpochResult, Fitted
from training.inventory import CHAMPION, best_version, registered_versions
from training.options import TrainOptions

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL_ARTIFACT = "model"
_REQUIREMENTS = ("mlflow", "numpy", "torch")
_CHATTER = ("Registered model ", "Created version ")
_EXAMPLE_SAMPLES = 2  # torch.export makes a dimension of 1 constant, and the batch must stay free


def prepare(client: MlflowClient, model_name: str) -> str:
    """Create the experiment and the registered model, both of that name, unless they are there.

    Returns:
        The experiment's id.
    """
    experiment = client.get_experiment_by_name(model_name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(model_name)
    if not client.search_registered_models(f"name = '{model_name}'"):
        client.create_registered_model(model_name, description="Handwritten digits, 0 to 9, as 28x28 images.")
    return str(experiment_id)


@contextlib.contextmanager
def run(
    experiment_id: str, arch: str, dataset: Dataset, split: Split, options: TrainOptions
) -> Iterator[None]:
    """An MLflow run with the parameters of the training; it is marked as failed if the block raises."""
    import mlflow

    tags = {"arch": arch, "dataset": dataset.name}
    with mlflow.start_run(experiment_id=experiment_id, run_name=f"{arch} on {dataset.name}", tags=tags):
        mlflow.log_params(_params(arch, dataset, split, options))
        mlflow.log_dict({"val_indices": split.val.tolist()}, "split.json")
        mlflow.log_input(_described_data(dataset), context="training")
        yield


def log_epoch(result: EpochResult) -> None:
    """Add an epoch's metrics to the run, in one write."""
    import mlflow

    metrics = {
        "train_loss": result.train_loss,
        "val_loss": result.val_loss,
        "val_accuracy": result.val_accuracy,
    }
    mlflow.log_metrics(metrics, step=result.epoch)


def register(model_name: str, arch: str, dataset: Dataset, split: Split, fitted: Fitted) -> int:
    """Log a fitted network and its figures in the run, and register it.

    Returns:
        The version's number.
    """
    import mlflow

    title = f"{arch} on {dataset.name}"
    curve = learning_curve(fitted.history, title)
    labels = dataset.labels[split.val]
    matrix = confusion_matrix(labels, fitted.evaluation.predicted, f"{title}: validation")
    mlflow.log_figure(curve, "learning_curve.png")
    mlflow.log_figure(matrix, "confusion_matrix.png")
    metadata = {"modelyard.task": "classification"}
    if len(labels) <= MOST_ROWS:
        metadata[CORRECT] = "".join(str(int(right)) for right in fitted.evaluation.predicted == labels)
    info = _log_model(fitted, dataset.images[split.val[:_EXAMPLE_SAMPLES]], metadata)
    quality = {VAL_ACCURACY: fitted.evaluation.accuracy}
    last = fitted.history[-1].epoch
    mlflow.log_metrics(quality, last, model_id=info.model_id, dataset=_described_data(dataset))
    tags = {"arch": arch, "dataset": dataset.name, "dataset_digest": dataset.digest}
    tags[ROWS_TAG] = str(len(split.val))
    with _without_chatter():
        return int(mlflow.register_model(info.model_uri, model_name, tags=tags).version)


def move_champion(client: MlflowClient, tracking_uri: str, model_name: str, dataset_digest: str) -> None:
    """Assign the alias to the best version on a data set; among equals to the oldest."""
    best = best_version(registered_versions(tracking_uri, model_name), dataset_digest)
    if best is not None and not best.champion:
        client.set_registered_model_alias(model_name, CHAMPION, str(best.version))


def _params(arch: str, dataset: Dataset, split: Split, options: TrainOptions) -> dict[str, str | int | float]:
    """Parameters of a run; the inventory reads `arch` and `dataset_digest`."""
    return {
        "arch": arch,
        "dataset": dataset.name,
        "dataset_digest": dataset.digest,
        "train_samples": len(split.train),
        "val_samples": len(split.val),
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "val_fraction": options.val_fraction,
        "seed": options.seed,
    }


def _described_data(dataset: Dataset) -> Any:
    """The data set in MLflow's form: name, digest, shapes and source, without the samples."""
    import mlflow

    facts = {"source": dataset.source, "name": dataset.name, "digest": dataset.digest}
    with warnings.catch_warnings():
        # a folder's path fits two of MLflow's classes of the same name, of which it takes either
        warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
        return mlflow.data.from_numpy(dataset.images, targets=dataset.labels, **facts)


def _log_model(fitted: Fitted, example: np.ndarray, metadata: dict[str, str]) -> Any:
    """Log the network with a final softmax in the run."""
    import mlflow.pytorch
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    dtype = np.dtype(np.float32)
    signature = ModelSignature(
        inputs=Schema([TensorSpec(dtype, (-1, 1, SIDE_PIXELS, SIDE_PIXELS))]),
        outputs=Schema([TensorSpec(dtype, (-1, CLASSES))]),
    )
    return mlflow.pytorch.log_model(
        Classifier(fitted.network).eval(),
        name=MODEL_ARTIFACT,
        signature=signature,
        input_example=example,
        serialization_format="pt2",
        pip_requirements=requirements(),
        metadata=metadata,
    )


def requirements() -> list[str]:
    """Pinned requirements of a server, without local labels such as ``+cpu``, which no index can resolve."""
    return [f"{name}=={installed_version(name).split('+')[0]}" for name in _REQUIREMENTS]


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Suppress the lines that MLflow prints (not logs) on each registration; pass on all other output."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    finally:
        for line in said.getvalue().splitlines(keepends=True):
            if not line.startswith(_CHATTER):
                sys.stderr.write(line)
