"""Options of training. Imports no large library, so that command-line help stays fast."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from modelyard.digits import SPLIT_SEED, VAL_FRACTION

ARCHS = ("mlp", "cnn")
DATASETS = ("digits", "mnist")


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training: architectures, data, hyperparameters and registry.

    Attributes:
        tracking_uri: MLflow tracking server or database.
        model_name: Registered model; a version is added for each architecture.
        archs: One or more of `ARCHS`, in order.
        dataset: One of `DATASETS`.
        data_dir: Folder with MNIST's files; None downloads them.
        epochs: Passes over the training samples.
        batch_size: Samples of one step.
        learning_rate: Step size of Adam.
        val_fraction: Share of each class that is kept for validation.
        seed: Fixes the split, the initial weights, the order of samples and dropout.
    """

    tracking_uri: str
    model_name: str
    _: KW_ONLY
    archs: tuple[str, ...] = ARCHS[:1]
    dataset: str = "digits"
    data_dir: Path | None = None
    epochs: int = 8
    batch_size: int = 32
    learning_rate: float = 1e-3
    val_fraction: float = VAL_FRACTION
    seed: int = SPLIT_SEED
