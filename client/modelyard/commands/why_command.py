"""`modelyard why`: the reason why a job went to its version."""

from __future__ import annotations

import click

from modelyard.commands.console_output import JSON_OPTION, examples, write_json
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.route_view import show_route


@click.command("why", epilog=examples("modelyard why $id", "modelyard why --json $id"))
@click.argument("job_id", metavar="ID")
@JSON_OPTION
@URL_OPTION
def command(job_id: str, as_json: bool, url: str | None) -> None:
    """Explain why a job went to its version: the rule, the candidates and their figures, and the exclusions.

    --json writes the `route` of GET /results/ID?explain=true.
    """
    from modelyard import Client

    with Client(controller_url(url)) as client:
        job = client.explain(job_id)
    assert job.route
    if as_json:
        write_json(job.route)
    else:
        show_route(job.route)
        if job.rerouted_from:
            click.echo(
                f"moved: {job.rerouted_from} was retired, and {job.model_name}/{job.model_version} got its waiting jobs"
            )
