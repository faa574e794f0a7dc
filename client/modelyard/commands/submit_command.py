"""`modelyard submit`: sends samples to a controller and does not wait for the outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import click

from modelyard.commands.console_output import JSON_OPTION, examples, write_json
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.given_samples import given_sample, sample_options, selector
from modelyard.redaction import redacted

if TYPE_CHECKING:
    from modelyard.calls import SubmitOptions
    from modelyard.commands.given_samples import Given

EXAMPLES = examples(
    "modelyard submit --data rows.parquet --model Prices --deadline 600",
    "id=$(modelyard submit --example --model Prices) && modelyard results --wait 60 $id",
)


@click.command("submit", epilog=EXAMPLES)
@sample_options
@click.option(
    "--deadline",
    "deadline_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time until the job expires, if no worker has started it; default: the controller's.",
)
@click.option(
    "--callback-url",
    metavar="URL",
    help="Where the controller delivers the job when it has ended, as a signed webhook.",
)
@JSON_OPTION
@URL_OPTION
def command(
    deadline_s: float | None,
    callback_url: str | None,
    as_json: bool,
    url: str | None,
    **given: Unpack[Given],
) -> None:
    """Send samples as `modelyard predict` does, and print the id of the job.

    Samples that are larger than a request may be are several jobs, one id a line. The URL of each is
    written to standard error.
    """
    from modelyard import Client, JoinedJob

    url = controller_url(url)
    with Client(url) as client:
        sample = given_sample(given, client)
        options: SubmitOptions = {
            **selector(given),
            "deadline_s": deadline_s,
            "callback_url": callback_url,
        }
        job = client.submit(sample.samples, params=sample.params, **options)
    if as_json:
        write_json(job)
        return
    for each in job.parts if isinstance(job, JoinedJob) else (job,):
        click.echo(each.id)
        click.echo(redacted(f"result: {url.rstrip('/')}/results/{each.id}"), err=True)
