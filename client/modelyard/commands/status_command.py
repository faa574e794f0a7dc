"""`modelyard status`: which version answers, how well, how fast, and what waits."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

import click

from modelyard.commands.console_output import (
    JSON_OPTION,
    WATCH_OPTION,
    Listing,
    examples,
    figure_of,
    number,
    refuse_watched_json,
    watch,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.exit_status import FAILED
from modelyard.redaction import redacted

if TYPE_CHECKING:
    from modelyard import Client, WorkerInfo
    from modelyard.schemas import Readiness

COLUMNS = (
    *("rank", "model", "version", "worker", "val_accuracy", "state", "workers", "wait", "backlog"),
    *("p50", "p99", "done", "errors", "aliases", "note"),
)
NUMBERS = frozenset(
    {*("rank", "version", "worker", "workers", "wait", "backlog", "p50", "p99", "done", "errors")}
)
EXAMPLES = examples(
    "modelyard status",
    "modelyard status --watch",
    "modelyard status --json | jq '.workers[] | select(.chosen)'",
)


@click.command("status", epilog=EXAMPLES)
@WATCH_OPTION
@JSON_OPTION
@URL_OPTION
def command(watch_s: float | None, as_json: bool, url: str | None) -> None:
    """Show every served version: its rank, quality, speed and backlog; the version that answers is marked.

    Exit status: 0 the controller accepts jobs, 1 it does not.
    """
    from modelyard import Client, RetryPolicy

    refuse_watched_json(watch_s, as_json=as_json)
    address = controller_url(url)
    url = redacted(address)
    with Client(address, retry=RetryPolicy(attempts=1)) as client:
        if watch_s:
            watch(lambda: versions(url, client.ready(), _workers(client)), watch_s)
            return
        ready, workers = client.ready(), _workers(client)
    if as_json:
        write_json({"url": url, "ready": ready.ready, "reasons": ready.reasons, "workers": workers})
    else:
        listing = versions(url, ready, workers)
        click.echo(listing.title)
        write_listing(Listing(listing.columns, listing.rows, NUMBERS, empty="", marked=listing.marked))
    sys.exit(0 if ready.ready else FAILED)


def _workers(client: Client) -> tuple[WorkerInfo, ...] | None:
    """The pool; None where the key's role does not show it."""
    from modelyard.errors import ForbiddenError

    try:
        return client.workers()
    except ForbiddenError:
        return None


def versions(url: str, ready: Readiness, workers: tuple[WorkerInfo, ...] | None) -> Listing:
    """One row a version, best first, the ones that answer marked."""
    ranked = sorted(workers or (), key=lambda each: (each.rank is None, each.rank, each.worker))
    state = "accepts jobs" if ready.ready else f"accepts no jobs: {'; '.join(ready.reasons)}"
    title = f"{url} {state}"
    if workers is None:
        title += "; the API key needs the role operate to see the pool"
    else:
        n_workers = sum(len(each.replicas) for each in workers)
        n_ready = sum(each.live_workers for each in workers)
        n_jobs = sum(each.backlog_jobs for each in workers)
        title += f"; {n_ready} of {n_workers} workers ready, waiting jobs: {n_jobs}"
    marked = [place for place, each in enumerate(ranked) if each.chosen]
    return Listing(COLUMNS, [_row(each) for each in ranked], NUMBERS, title, title, marked)


def _row(info: WorkerInfo) -> list[object]:
    source = f" ({info.val_accuracy_source})" if info.val_accuracy_source else ""
    return [
        f"{info.rank}*" if info.chosen else info.rank,
        info.model_name,
        info.model_version,
        info.worker,
        f"{figure_of(info)}{source}",
        state_of(info),
        f"{info.live_workers}/{len(info.replicas)}",
        number(info.expected_wait_s, 3, "s"),
        info.backlog_jobs,
        number(info.inference_ms.p50, 2, "ms"),
        number(info.inference_ms.p99, 2, "ms"),
        info.jobs_done,
        info.jobs_failed,
        ", ".join(info.aliases),
        "; ".join(filter(None, (info.excluded_why or _remark(info), start_failure_of(info)))),
    ]


def _remark(info: WorkerInfo) -> str:
    if info.cold:
        return "requests queue for it until a worker is ready"
    return f"scaled to {info.scaled_to} by hand" if info.scaled_to else ""


def state_of(info: WorkerInfo) -> str:
    """State of a version: why routing leaves it out, or that of its worker nearest to serving.

    Without any, `failing` if none starts, else `cold`.
    """
    if info.excluded:
        return info.excluded
    states = {each.state for each in info.replicas}
    without = "failing" if info.start_failure else "cold"
    return next((each for each in ("ready", "starting", "draining") if each in states), without)


def start_failure_of(info: WorkerInfo) -> str:
    """Since when and why no worker of a version starts; empty if nothing failed."""
    failure = info.start_failure
    if failure is None:
        return ""
    since = datetime.fromtimestamp(failure.since_ms / 1000).astimezone()
    return f"does not start since {since:%H:%M}: {failure.reason}"
