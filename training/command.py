"""The ``modelyard train`` command: options in, a progress bar and a table out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from app.registry_database import sqlite_path
from app.server_errors import ConfigurationError
from app.settings import Settings, load
from modelyard.commands.console_output import JSON_OPTION, Listing, examples, write_json, write_listing
from training.inventory import RegisteredVersion, quickly_known_archs, registered_versions
from training.options import ARCHS, DATASETS, TrainOptions
from training.versions import train_versions


@click.command(
    epilog=examples(
        "modelyard train",
        "modelyard train --arch mlp --arch cnn --epochs 12",
        "modelyard train --json | jq '.versions[-1].val_accuracy'",
    )
)
@click.option(
    "--arch", "archs", multiple=True, type=click.Choice(ARCHS), help="May be repeated.  [default: mlp]"
)
@click.option("--dataset", type=click.Choice(DATASETS), default=TrainOptions.dataset, show_default=True)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder with MNIST's IDX files.  [default: download them once]",
)
@click.option("--epochs", type=click.IntRange(1, 10_000), default=TrainOptions.epochs, show_default=True)
@click.option(
    "--batch-size", type=click.IntRange(2, 65_536), default=TrainOptions.batch_size, show_default=True
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, 10, min_open=True),
    default=TrainOptions.learning_rate,
    show_default=True,
)
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=TrainOptions.val_fraction,
    show_default=True,
    help="Fraction of each class held out for validation.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=TrainOptions.seed, show_default=True)
@click.option("--model-name", help="Registered model.  [default: MODEL_NAME]")
@click.option("--missing", is_flag=True, help="Skip each --arch that already has a version.")
@JSON_OPTION
def command(
    archs: tuple[str, ...], model_name: str | None, missing: bool, as_json: bool, **options: Any
) -> None:
    """Train model versions on handwritten digits and register them in MLflow.

    The registry is MLFLOW_TRACKING_URI. Each architecture becomes one version; the alias `champion`
    moves to the version with the best validation accuracy on the same data set. With --json, the
    progress goes to standard error.
    """
    settings = load(Settings, model_name=model_name)
    _check_place(settings)
    console = Console(stderr=as_json)
    archs = archs or TrainOptions.archs
    if missing:
        archs = unregistered(archs, settings)
        if not archs:
            console.print(f"{settings.model_name} has a version of each architecture; nothing to train")
            if as_json:
                write_json({"model_name": settings.model_name, "versions": []})
            return
    chosen = TrainOptions(
        tracking_uri=settings.mlflow_tracking_uri, model_name=settings.model_name, archs=archs, **options
    )
    versions = train_with_progress(chosen, console)
    document = versions_document(chosen.model_name, versions, new=len(chosen.archs))
    if as_json:
        write_json(document)
    else:
        write_listing(versions_listing(document))


def _check_place(settings: Settings) -> None:
    """Refuse a database that cannot be written; MLflow would retry for minutes.

    Raises:
        ConfigurationError: The database cannot be written.
    """
    path = sqlite_path(settings.mlflow_tracking_uri)
    if path is None:
        return
    place = path if path.exists() else path.absolute().parent
    if not os.access(place, os.W_OK):
        reason = "cannot be written" if place.exists() else "does not exist"
        raise ConfigurationError(
            f"the registry {settings.shown_registry} cannot be used: {place} {reason}; set MLFLOW_TRACKING_URI "
            f"to a database in a writable folder"
        )


def unregistered(archs: tuple[str, ...], settings: Settings) -> tuple[str, ...]:
    """The given architectures that have no registered version of the settings' model."""
    uri, name = settings.mlflow_tracking_uri, settings.model_name
    if not set(archs) - quickly_known_archs(uri, name):
        return ()
    known = {each.arch for each in registered_versions(uri, name)}
    return tuple(arch for arch in archs if arch not in known)


def train_with_progress(options: TrainOptions, console: Console) -> list[RegisteredVersion]:
    """Run `train_versions` with a progress bar, or with one line per step if the output is not a terminal."""
    if not console.is_terminal:
        return train_versions(options, _PlainProgress(console))
    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"),
        TextColumn("{task.description:<30}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("[cyan]{task.fields[remark]}"),
    )
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int, remark: str) -> None:
            if what not in bars:
                _finish(progress)
                bars[what] = progress.add_task(what, total=total or None, remark="")
            progress.update(bars[what], completed=done, total=total or None, remark=remark)

        versions = train_versions(options, on_progress)
        _finish(progress)
    return versions


class _PlainProgress:
    """Writes one line for each started task and for each new remark on it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ("", "")

    def __call__(self, what: str, done: int, total: int, remark: str) -> None:
        if (what, remark) != self._last:
            line = f"{what} {done}/{total}: {remark}" if remark and total else what
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last = (what, remark)


def _finish(progress: Progress) -> None:
    """Fill the current bars, because their tasks are done."""
    for task in progress.tasks:
        progress.update(task.id, total=task.total or 1, completed=task.total or 1)


def versions_document(model_name: str, versions: list[RegisteredVersion], *, new: int) -> dict[str, Any]:
    """Versions of one data set, of which the `new` last ones were trained now."""
    return {
        "model_name": model_name,
        "versions": [
            {
                "version": each.version,
                "arch": each.arch,
                "val_accuracy": each.val_accuracy,
                "run_id": each.run_id,
                "champion": each.champion,
                "new": index >= len(versions) - new,
            }
            for index, each in enumerate(versions)
        ],
    }


def versions_listing(document: dict[str, Any]) -> Listing:
    """The same as a table."""
    versions = document["versions"]
    return Listing(
        columns=("version", "arch", "val_accuracy", "alias", "trained"),
        rows=[
            (
                each["version"],
                each["arch"],
                "unknown" if each["val_accuracy"] is None else f"{each['val_accuracy']:.4f}",
                "champion" if each["champion"] else None,
                "new" if each["new"] else None,
            )
            for each in versions
        ],
        right=("version", "val_accuracy"),
        title=document["model_name"],
        marked=[place for place, each in enumerate(versions) if each["champion"]],
    )
