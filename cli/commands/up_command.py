"""`modelyard up`: runs a complete pool on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from modelyard.commands.console_output import examples


def parse_versions(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int]:
    """Parse a list such as `1,2`; empty without the option."""
    words = value.replace(" ", "").split(",") if value else []
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise click.BadParameter(f"{value!r} is not a list of version numbers such as 1,2")
    return [int(word) for word in words]


def what_to_serve(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what to serve."""
    options = (
        click.option(
            "--model",
            "models",
            multiple=True,
            metavar="NAME[:3|@ALIAS]",
            help="Model to serve, all or one of its versions; may be repeated. Default: modelyard.toml, or "
            "champion, best and newest version of every model.",
        ),
        click.option(
            "--versions", callback=parse_versions, metavar="1,2", help="Versions of MODEL_NAME to serve."
        ),
        click.option(
            "--replicas",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Workers per version, where modelyard.toml states none.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("up", epilog=examples("modelyard up", "modelyard up --replicas 2 --no-views"))
@what_to_serve
@click.option(
    "--controllers",
    type=click.IntRange(1, 16),
    default=1,
    show_default=True,
    help="Controllers, each on its own port.",
)
@click.option("--views/--no-views", default=True, help="Run Flower and MLflow's user interface too.")
@click.option("--dry-run", is_flag=True, help="Only print what would be started.")
def command(
    models: tuple[str, ...], versions: list[int], replicas: int, controllers: int, views: bool, dry_run: bool
) -> None:
    """Run Redis, workers, controllers, Flower and MLflow until Ctrl-C, which stops all of them.

    The workers follow modelyard.toml and the registry: edits of the file, new versions and moved aliases.
    """
    from rich.console import Console

    from app.settings import PoolSettings, load
    from cli.local_pool.desired_state import difference
    from cli.local_pool.local_pool import PoolPlan, claimed, doing, open_pool, until_interrupted
    from cli.local_pool.planning import (
        first_state,
        prepare_environments,
        print_plan,
        tell_of_left_out,
        tell_of_unmatched,
    )
    from cli.local_pool.registry_watch import RegistryWatch
    from cli.local_pool.served_entries import ServedEntries, entries_given
    from training.registry_reader import RegistryReader

    is_terminal = sys.stdout.isatty()  # asked here, because notebooks set FORCE_COLOR
    console = Console(force_terminal=is_terminal, highlight=False, soft_wrap=True)
    settings = load(PoolSettings)
    source = ServedEntries(settings, entries_given(settings, models, versions))
    with until_interrupted(), ExitStack() as stack:
        if not dry_run:
            stack.enter_context(claimed(settings, console))
        reader = stack.enter_context(RegistryReader(settings.mlflow_tracking_uri))
        with doing("reading the registry", console):
            question, reading, desired = first_state(settings, source, reader, replicas)
        tell_of_left_out(desired, console)
        plan = difference(desired.targets, {}, [])
        if dry_run:
            tell_of_unmatched(source, desired, console)
            print_plan(plan, console)
            return
        prepare_environments(desired.targets)
        workers = [worker for worker, _ in plan.start]
        watch = RegistryWatch(settings.mlflow_tracking_uri, question, reading, reader)
        with open_pool(settings, PoolPlan(workers, controllers, views), console) as pool:
            pool.start_core()
            pool.start_views()
            pool.print_urls()
            console.print("Ctrl-C stops everything")
            pool.follow(source, watch, replicas)
