"""The ``modelyard train`` command: options in, a progress bar and a table out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.registry_database import sqlite_path
from app.server_errors import ConfigurationError
from app.settings import Settings, load
from modelyard.commands.console_output import examples
from training.inventory import RegisteredVersion, quickly_known_archs, registered_versions
from training.options import ARCHS, DATASETS, TrainOptions
from training.versions import train_versions


@click.command(epilog=examples("modelyard train", "modelyard train --arch mlp --arch cnn --epochs 12"))
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
def command(archs: tuple[str, ...], model_name: str | None, missing: bool, **options: Any) -> None:
    """Train model versions on handwritten digits and register them in MLflow.

    The registry is MLFLOW_TRACKING_URI. Each architecture becomes one version; the alias `champion`
    moves to the version with the best validation accuracy on the same data set.
    """
    settings = load(Settings, model_name=model_name)
    _check_place(settings)
    console = Console()
    archs = archs or TrainOptions.archs
    if missing:
        archs = unregistered(archs, settings)
        if not archs:
            console.print(f"{settings.model_name} has a version of each architecture; nothing to train")
            return
    chosen = TrainOptions(
        tracking_uri=settings.mlflow_tracking_uri, model_name=settings.model_name, archs=archs, **options
    )
    versions = train_with_progress(chosen, console)
    console.print(versions_table(chosen.model_name, versions, new=len(chosen.archs)))


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


def versions_table(model_name: str, versions: list[RegisteredVersion], *, new: int) -> Table:
    """Versions of one data set side by side, the `new` last ones marked."""
    table = Table(title=model_name, title_justify="left", title_style="bold")
    table.add_column("version", justify="right")
    table.add_column("arch")
    table.add_column("val_accuracy", justify="right")
    table.add_column("")
    for index, version in enumerate(versions):
        remarks = ["new"] * (index >= len(versions) - new) + ["[bold green]champion[/]"] * version.champion
        accuracy = "unknown" if version.val_accuracy is None else f"{version.val_accuracy:.4f}"
        table.add_row(str(version.version), version.arch, accuracy, ", ".join(remarks))
    return table
