"""`modelyard route --dry-run`: the version that a request would get now."""

from __future__ import annotations

import click

from modelyard.commands.console_output import JSON_OPTION, examples, write_json
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.route_view import show_route

EXAMPLES = examples("modelyard route --dry-run", "modelyard route --dry-run --model digits --deadline 0.5")


@click.command("route", epilog=EXAMPLES)
@click.option("--dry-run", is_flag=True, help="Accepted for clarity: the command never sends a job.")
@click.option("--model", metavar="NAME[@ALIAS]", help="Model that the request would name.")
@click.option("--version", metavar="V", help="Version of that model: its number or an alias.")
@click.option("--endpoint", metavar="NAME", help="Endpoint that the request would name.")
@click.option("--worker", type=int, metavar="N", help="Worker number that the request would name.")
@click.option("--deadline", "deadline_s", type=float, metavar="SECONDS", help="Deadline of the request.")
@JSON_OPTION
@URL_OPTION
def command(
    dry_run: bool,
    model: str | None,
    version: str | None,
    endpoint: str | None,
    worker: int | None,
    deadline_s: float | None,
    as_json: bool,
    url: str | None,
) -> None:
    """Show where a request would go now, and why. Nothing is sent.

    Where versions take different inputs, it shows a route for each. --json writes the document of GET /route.
    """
    from modelyard import Client

    with Client(controller_url(url)) as client:
        plan = client.route(
            model=model, version=version, endpoint=endpoint, worker=worker, deadline_s=deadline_s
        )
    if as_json:
        write_json(plan)
        return
    for place, each in enumerate(plan.routes):
        if len(plan.routes) > 1:
            click.echo(("\n" if place else "") + f"input: {each.input}")
        show_route(each)
    if plan.deadline_s is not None and plan.wait_s is not None:
        click.echo(f"\ndeadline {plan.deadline_s:g} s; waits {plan.wait_s:g} s for the outcome")
