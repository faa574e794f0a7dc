"""`modelyard plan`: shows what `modelyard up` would start and stop."""

from __future__ import annotations

from collections import Counter

import click
from click.core import ParameterSource

from cli.commands.up_command import what_to_serve
from modelyard.commands.console_output import JSON_OPTION, examples, waiting, write_json


@click.command("plan", epilog=examples("modelyard plan", "modelyard plan --json | jq '.start[].worker'"))
@what_to_serve
@JSON_OPTION
@click.pass_context
def command(
    ctx: click.Context, models: tuple[str, ...], versions: list[int], replicas: int, as_json: bool
) -> None:
    """Compare what is to be served with the running pool, and print the difference.

    What the options leave open is as the running pool was asked for, or as in modelyard.toml.
    """
    from rich.console import Console

    from app.settings import Settings, load
    from cli.local_pool.desired_state import difference
    from cli.local_pool.planning import (
        first_state,
        plan_document,
        print_plan,
        tell_of_left_out,
        tell_of_unmatched,
    )
    from cli.local_pool.preflight import is_running
    from cli.local_pool.present_state import controls, in_service
    from cli.local_pool.programs import present_workers
    from cli.local_pool.served_entries import ServedEntries, asked_of_pool, entries_given
    from training.registry_reader import RegistryReader

    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    settings = load(Settings)
    runs, given = is_running(settings), entries_given(settings, models, versions)
    if runs:
        asked_entries, asked_replicas = asked_of_pool(settings)
        given = given or asked_entries
        if ctx.get_parameter_source("replicas") is ParameterSource.DEFAULT:
            replicas = asked_replicas
    source = ServedEntries(settings, given)
    with waiting("reading the registry"), RegistryReader(settings.mlflow_tracking_uri) as reader:
        _, _, desired = first_state(settings, source, reader, replicas)
    tell_of_left_out(desired, console)
    tell_of_unmatched(source, desired, console)
    present = present_workers(settings) if runs else []
    counts = Counter(worker.named for worker in present)
    table = controls(settings) if runs else None
    targets = in_service(desired.targets, table or {}, source.edited_at_ms)
    plan = difference(targets, counts, present)
    if as_json:
        write_json({"pool_runs": runs, **plan_document(plan, desired)})
        return
    print_plan(plan, console)
    if not runs:
        console.print(f"no pool runs in {settings.state_dir}", markup=False)
