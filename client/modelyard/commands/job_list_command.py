"""`modelyard jobs list`: open jobs, or recently finished ones, as the controller lists them."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Unpack

import click

from modelyard.commands.console_output import (
    JSON_OPTION,
    WATCH_OPTION,
    Listing,
    examples,
    number,
    refuse_watched_json,
    utc,
    watch,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url

if TYPE_CHECKING:
    from modelyard.calls import JobFilter
    from modelyard.schemas import JobList, JobSummary

COLUMNS = (
    *("job", "status", "model", "version", "worker", "samples", "attempts", "received"),
    *("queue", "inference", "end to end", "error"),
)
NUMBERS = frozenset({"version", "worker", "samples", "attempts", "queue", "inference", "end to end"})
STATUSES = ("open", "finished", "queued", "running", "succeeded", "failed", "expired", "cancelled")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXAMPLES = examples(
    "modelyard jobs list --status open --watch",
    "modelyard jobs list --status failed --since 1h",
    "modelyard jobs list --slow 500 --model Prices --json | jq -r '.jobs[].id'",
)


def _since_ms(ctx: click.Context, option: click.Parameter, value: str | None) -> float:
    """A time such as `90s`, `15m`, `1h` or `2d` ago, in ms since the epoch."""
    found = re.fullmatch(r"(\d+)([smhd])", value or "0s")
    if not found:
        raise click.BadParameter(f"{value!r} is not a time such as 90s, 15m, 1h or 2d")
    ago_s = int(found[1]) * UNITS_S[found[2]]
    return max(0.0, time.time() - ago_s) * 1000 if ago_s else 0.0


@click.command("list", epilog=EXAMPLES)
@click.option("--status", type=click.Choice(STATUSES), default="finished", show_default=True)
@click.option("--model", default="", metavar="NAME", help="Only jobs of this model.")
@click.option("--version", type=click.IntRange(1), metavar="V", help="Only jobs of this version.")
@click.option("--code", default="", metavar="CODE", help="Only jobs with this error code.")
@click.option(
    "--slow",
    "min_ms",
    type=click.FloatRange(0),
    default=0.0,
    metavar="MS",
    help="Only jobs that took at least so many milliseconds.",
)
@click.option(
    "--attempts",
    "min_attempts",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Only jobs that workers claimed at least so often.",
)
@click.option(
    "--since",
    "since_ms",
    callback=_since_ms,
    metavar="TIME",
    help="Only of the last TIME, such as 15m or 2d.",
)
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="Most jobs.")
@click.option("--cursor", default="", metavar="NEXT", help="Continue where a page ended.")
@WATCH_OPTION
@JSON_OPTION
@URL_OPTION
def command(watch_s: float | None, as_json: bool, url: str | None, **wanted: Unpack[JobFilter]) -> None:
    """List finished jobs, newest first, or open ones, oldest first.

    With API keys it needs the role operate. --json writes the document of GET /jobs.
    """
    from modelyard import Client, RetryPolicy

    refuse_watched_json(watch_s, as_json=as_json)
    with Client(controller_url(url), retry=RetryPolicy(attempts=1)) as client:
        if watch_s:
            watch(lambda: _listing(client.list_jobs(**wanted)), watch_s)
            return
        page = client.list_jobs(**wanted)
    if as_json:
        write_json(page)
        return
    write_listing(_listing(page))
    if page.next:
        click.echo(f"more: --cursor {page.next}", err=True)


def _listing(page: JobList) -> Listing:
    return Listing(COLUMNS, [_row(job) for job in page.jobs], NUMBERS, empty="no such job")


def _row(job: JobSummary) -> list[object]:
    return [
        job.id,
        job.status,
        job.model_name,
        job.model_version,
        job.worker,
        job.n_samples,
        job.attempts,
        utc(job.received_at_ms),
        number(job.queue_wait_ms, 1, "ms"),
        number(job.inference_ms, 1, "ms"),
        number(job.end_to_end_ms, 1, "ms"),
        job.error_code,
    ]
