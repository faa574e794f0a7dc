"""`modelyard check`: describes a model, and reports whether a worker would serve it and how to solve obstacles."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from app.logs import configure_logging
from app.server_errors import ModelError, ModelWarmUpError, first_line
from app.settings import WorkerSettings, load
from modelyard.commands.console_output import JSON_OPTION, examples, waiting, write_json

if TYPE_CHECKING:
    from workers.model_lookup import ModelVersion

REGISTERED = re.compile(r"models:/(?!m-)([^/@]+)(?:[/@]([^/@]+))?/?")


@click.command(
    "check",
    epilog=examples(
        "modelyard check models:/My_Model/1",
        "modelyard check models:/My_Model@champion",
        "modelyard check models:/My_Model/1 --json | jq '.obstacles[].code'",
    ),
)
@click.argument("model")
@JSON_OPTION
def command(model: str, as_json: bool) -> None:
    """Describe MODEL, and report whether a worker would serve it and every obstacle.

    MODEL is models:/NAME/VERSION, models:/NAME@ALIAS or a folder with a model's files; the registry is
    MLFLOW_TRACKING_URI. The model is loaded and warmed up as a worker does it, so nothing runs that
    MODELYARD_ALLOW_PICKLE_MODELS does not allow. With MODELYARD_ENV_MANAGER=uv that happens in the version's own
    environment, which is built first. Exit status: 0 it would be served, 1 it would not.
    """
    settings = load(WorkerSettings)
    configure_logging(logging.ERROR)  # the report contains what a worker would log as warnings
    with _downloads_removed():
        with waiting("reading the registry"):
            found = _find(model, settings)
            described = _described(found)
        if not as_json:
            _tell(found, described)
        with waiting("loading the model"):
            problems = _obstacles(found, settings)
    if as_json:
        obstacles = [{"code": each.code, "detail": each.detail} for each in problems]
        facts = {"model": found.uri, "would_be_served": not problems, "obstacles": obstacles}
        write_json(facts | {"warnings": [*found.warnings], **described})
        sys.exit(1 if problems else 0)
    click.echo(f"would be served: {'no' if problems else 'yes'}")
    for each in problems:
        click.echo(f"- {each.detail} [{each.code}]")
    sys.exit(1 if problems else 0)


@contextmanager
def _downloads_removed() -> Iterator[None]:
    """Redirect temporary files to a folder that is removed: MLflow does not delete its downloads."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _find(model: str, settings: WorkerSettings) -> ModelVersion:
    from workers import model_lookup

    named = REGISTERED.fullmatch(model)
    if named:
        return model_lookup.look_up(settings.mlflow_tracking_uri, named[1], named[2] or "latest")
    if not Path(model, "MLmodel").is_file():
        raise click.UsageError(
            f"{model} is neither models:/NAME/VERSION, models:/NAME@ALIAS nor a folder with a file MLmodel"
        )
    try:
        described = model_lookup.read_description(model)
    except Exception as error:  # an exception of MLflow or of its YAML parser
        raise ModelWarmUpError(f"{model}/MLmodel cannot be read: {first_line(error)}") from error
    return model_lookup.ModelVersion(
        model,
        0,
        "",
        model,
        described.flavors,
        described.signature,
        place=model,
        task=described.task,
        labels=described.labels,
    )


def _tell(found: ModelVersion, described: dict[str, str]) -> None:
    click.echo(found.uri)
    for name, text in described.items():
        click.echo(f"  {name:<13}{text}")
    for warning in found.warnings:
        click.echo(f"  {'warning':<13}{warning}")


def _described(found: ModelVersion) -> dict[str, str]:
    from mlflow.models import Model

    from app.model_files import loading
    from workers import requirements_check

    folder, how = Path(found.path), loading(found.flavors, Path(found.path))
    signature = Model.load(found.path).signature
    files = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())
    return {
        "flavors": ", ".join(sorted(found.flavors)),
        "files": ", ".join(files[:20]) + (", …" if len(files) > 20 else ""),
        "loads": how.reason or f"{how.file}, without running its author's code",
        "inputs": str(signature.inputs) if signature else "no signature",
        "outputs": str(signature.outputs) if signature and signature.outputs else "not in the signature",
        "run": found.run_id or "none",
        "val_accuracy": "none; chosen only if no other version has one"
        if found.quality.value is None
        else f"{found.quality.value:g}",
        "packages": requirements_check.described(requirements_check.differences(found.path))
        or "as the version requires",
        "dataset": _dataset(found.run_id) or "none logged",
    }


def _dataset(run_id: str) -> str:
    """The data sets that were logged on a run."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        inputs = mlflow.MlflowClient().get_run(run_id).inputs.dataset_inputs if run_id else []
    except MlflowException:  # the run was purged; a warning reports it
        return ""
    return ", ".join(f"{each.dataset.name} (digest {each.dataset.digest})" for each in inputs)


def _obstacles(found: ModelVersion, settings: WorkerSettings) -> list[ModelError]:
    from workers import model

    problems = model.obstacles(found, settings)
    if not problems and settings.env_manager == "uv":
        from workers import model_environment

        model_environment.logger.setLevel(logging.INFO)  # a build takes a while
        problem = model_environment.try_loading(found, settings)
        problems += [problem] if problem else []
    elif not problems:
        try:
            model.load(found, settings)
        except ModelError as error:
            problems.append(error)
    return problems
