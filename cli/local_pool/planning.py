"""The wanted state when a command starts: reads the registry once, refuses what it lacks, and prints plans."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from typing import Any

from rich.console import Console

from app.pool_file import NamedVersion
from app.registry_database import others_beside
from app.server_errors import ModelNotFoundError
from app.settings import Settings, WorkerSettings, load
from cli.local_pool.desired_state import MOST_VERSIONS, Desired, Plan, Target, desired_state, question_of
from cli.local_pool.programs import MODELYARD
from cli.local_pool.served_entries import ServedEntries
from training.registry_reader import Question, Reading, RegistryReader


def first_state(
    settings: Settings, source: ServedEntries, reader: RegistryReader, replicas: int
) -> tuple[Question, Reading, Desired]:
    """Read the registry, and find the versions to serve in it.

    Raises:
        ModelNotFoundError: The registry lacks something that the entries name, or has no version at all.
        RegistryUnavailableError: The registry does not answer.
    """
    question = question_of(source.entries)
    reading = reader.read(question)
    desired = desired_state(source.entries, reading, replicas, source.endpoints)
    place = f"{settings.shown_registry}{others_beside(settings.mlflow_tracking_uri)}"
    if desired.problems:
        lines = [f"{line}; the registry is {place}" for line in source.lines(desired.problems)]
        raise ModelNotFoundError("\nmodelyard: ".join(lines))
    if not desired.targets:
        why = (
            "; ".join(source.lines(desired.unmatched))
            or "train one with `modelyard train`, or check MLFLOW_TRACKING_URI"
        )
        raise ModelNotFoundError(f"there is no version to serve in {place}; {why}")
    return question, reading, desired


def tell_of_left_out(desired: Desired, console: Console) -> None:
    """Print the versions that are not served because nothing asks for them."""
    if desired.left_out:
        shown = ", ".join(f"{target.named} ({', '.join(target.reasons)})" for target in desired.left_out)
        text = (
            f"a pool without a choice serves at most {MOST_VERSIONS} versions; not served: {shown}; name them with "
            "--model NAME:VERSION or in modelyard.toml"
        )
        console.print(text, markup=False)


def tell_of_unmatched(source: ServedEntries, desired: Desired, console: Console) -> None:
    """Print the words of entries that name no version now."""
    for line in source.lines(desired.unmatched):
        console.print(line, markup=False)


def print_plan(plan: Plan, console: Console) -> None:
    """Print what a plan starts, stops and keeps, one worker a line."""
    lines = [f"+ start {worker.name}: {reason}" for worker, reason in plan.start]
    lines += [f"- stop {worker.name}: {reason}" for worker, reason in plan.stop]
    lines += [f"= keep {worker.name}" for worker in plan.keep]
    for line in lines:
        console.print(line, markup=False)


def plan_document(plan: Plan, desired: Desired) -> dict[str, list[dict[str, Any]]]:
    """The fields of a plan for programs, and the versions that are not served because nothing asks for them."""
    return {
        "start": [_named(worker.named, worker=worker.name, reason=reason) for worker, reason in plan.start],
        "stop": [_named(worker.named, worker=worker.name, reason=reason) for worker, reason in plan.stop],
        "keep": [_named(worker.named, worker=worker.name) for worker in plan.keep],
        "left_out": [_named(target.named, reason=", ".join(target.reasons)) for target in desired.left_out],
    }


def _named(named: NamedVersion, **fields: str) -> dict[str, Any]:
    return {"model_name": named.model, "model_version": named.version, **fields}


def prepare_environments(targets: Iterable[Target]) -> None:
    """Build the environments of versions that have separate ones, so that their workers start immediately.

    The reason why one cannot be built is on standard error. Its worker repeats it, and the others are served.
    """
    usual = load(WorkerSettings).env_manager
    for target in targets:
        if dict(target.variables).get("MODELYARD_ENV_MANAGER", usual) == "local":
            continue
        model, version = target.named
        chosen = ("--model-name", model, "--model-version", str(version))
        command = [*MODELYARD, "worker", "--prepare", *chosen]
        environment = os.environ | dict(target.variables)
        subprocess.run(command, env=environment, check=False)  # noqa: S603  (our own interpreter)
