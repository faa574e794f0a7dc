"""The complete training in order, from a data set to registered versions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from app.registry_database import examine
from training.inventory import RegisteredVersion, connect, registered_versions, registry_errors
from training.options import TrainOptions

if TYPE_CHECKING:
    from training.datasets import Dataset, Split
    from training.fit import EpochResult, Fitted

# Name of the current task, completed amount, total amount (0: unknown), and a remark.
OnProgress = Callable[[str, int, int, str], None]


def train_versions(options: TrainOptions, on_progress: OnProgress) -> list[RegisteredVersion]:
    """Train and register a version for each architecture, and move the champion alias to the best.

    Args:
        options: What to train and where to register it.
        on_progress: Called with the progress of each slow step.

    Returns:
        All versions of the model on that data set, oldest first; the new ones are the last.

    Raises:
        DatasetError: The data set is missing, corrupt, or too small for the split.
        RegistrySchemaError: The registry's database has the schema of another MLflow.
        RegistryUnavailableError: MLflow's registry does not answer.
    """
    examine(options.tracking_uri)  # before the imports that take seconds
    from training import registry
    from training.datasets import load_dataset, stratified_split

    on_progress(f"loading {options.dataset}", 0, 0, "")
    dataset = load_dataset(
        options.dataset,
        options.data_dir,
        lambda file, done, total: on_progress(f"downloading {file}", done, total, ""),
    )
    split = stratified_split(dataset, options.val_fraction, options.seed)
    on_progress("opening the registry", 0, 0, "")
    client = connect(options.tracking_uri)
    with registry_errors(options.tracking_uri):
        experiment_id = registry.prepare(client, options.model_name)
        for arch in options.archs:
            with registry.run(experiment_id, arch, dataset, split, options):
                fitted = _fit(arch, dataset, split, options, on_progress)
                on_progress(f"registering {arch}", 0, 0, "")
                registry.register(options.model_name, arch, dataset, split, fitted)
        registry.move_champion(client, options.tracking_uri, options.model_name, dataset.digest)
    versions = registered_versions(options.tracking_uri, options.model_name)
    return [version for version in versions if version.dataset_digest == dataset.digest]


def _fit(arch: str, dataset: Dataset, split: Split, options: TrainOptions, on_progress: OnProgress) -> Fitted:
    """Fit one architecture; tells each step and logs each epoch."""
    from training.fit import fit
    from training.registry import log_epoch

    task, remark = f"training {arch}", ""

    def on_epoch(result: EpochResult) -> None:
        nonlocal remark
        remark = f"val_accuracy {result.val_accuracy:.4f}"
        on_progress(task, result.epoch, options.epochs, remark)
        log_epoch(result)

    def on_step(done: int, total: int) -> None:
        on_progress(task, done, total, remark)

    return fit(arch, dataset, split, options, on_step=on_step, on_epoch=on_epoch)
