"""`modelyard predict`: sends samples to a controller and shows what came of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Unpack

import click

from modelyard.commands.console_output import JSON_OPTION, examples, waiting, write_json
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.given_samples import given_sample, sample_options, selector
from modelyard.commands.job_view import show_job

if TYPE_CHECKING:
    from modelyard.commands.given_samples import Given

EXAMPLES = examples(
    "modelyard predict                                  # a held-out digit",
    "modelyard predict seven.png                        # your own digit",
    "modelyard predict --data rows.csv --model Prices@champion",
    "modelyard predict --image photo.jpg --model Photos --json",
    "modelyard predict --text 'a fine day' --param top_k=3 --model Mood",
    'echo \'{"n": 1, "x": 0.5}\' | modelyard predict --data - --model Prices',
)


@click.command("predict", epilog=EXAMPLES)
@sample_options
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to wait for the outcome; 0 only submits.",
)
@JSON_OPTION
@URL_OPTION
def command(wait_s: float, as_json: bool, url: str | None, **given: Unpack[Given]) -> None:
    """Send samples to a controller: IMAGE (a PNG of one digit), a file, images, texts, or a held-out digit.

    A .json file is a request body, or the samples alone: a list of rows, or an object of columns or of one row.
    """
    import rich  # noqa: F401  (a missing package is named before anything is sent)

    from modelyard import Client

    url = controller_url(url)
    with Client(url) as client:
        sample = given_sample(given, client)
        started_s = time.perf_counter()
        with waiting("waiting for the outcome"):
            if wait_s:
                job = client.predict(sample.samples, params=sample.params, wait_s=wait_s, **selector(given))
            else:
                job = client.submit(sample.samples, params=sample.params, **selector(given))
        latency_ms = (time.perf_counter() - started_s) * 1000
    if as_json:
        write_json(job)
    else:
        show_job(job, url, sample, latency_ms)
