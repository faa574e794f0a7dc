"""`modelyard workers`: the processes that serve, and what each has done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelyard.commands.console_output import (
    JSON_OPTION,
    WATCH_OPTION,
    Listing,
    examples,
    number,
    refuse_watched_json,
    watch,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.status_command import start_failure_of

if TYPE_CHECKING:
    from modelyard import Replica, WorkerInfo

COLUMNS = (
    *("worker", "id", "model", "version", "state", "device", "host", "pid", "memory", "done", "errors"),
    *("batch", "p50", "p99", "warnings"),
)
NUMBERS = frozenset({"worker", "version", "pid", "memory", "done", "errors", "batch", "p50", "p99"})
EXAMPLES = examples("modelyard workers", "modelyard workers --watch 5", "modelyard workers --json")


@click.command("workers", epilog=EXAMPLES)
@WATCH_OPTION
@JSON_OPTION
@URL_OPTION
def command(watch_s: float | None, as_json: bool, url: str | None) -> None:
    """Show every worker process with its version, its state and its figures.

    With API keys it needs the role operate. --json writes the document of GET /workers.
    """
    from modelyard import Client, RetryPolicy
    from modelyard.schemas import Pool

    refuse_watched_json(watch_s, as_json=as_json)
    with Client(controller_url(url), retry=RetryPolicy(attempts=1)) as client:
        if watch_s:
            watch(lambda: processes(client.workers()), watch_s)
        elif as_json:
            write_json(Pool(client.workers()))
        else:
            write_listing(processes(client.workers()))


def processes(workers: tuple[WorkerInfo, ...]) -> Listing:
    """One row a worker process, and one for those of a version that do not start."""
    rows = []
    for info in workers:
        rows += [_row(info, each) for each in info.replicas]
        if failure := start_failure_of(info):
            rows.append([info.worker, "", info.model_name, info.model_version, "failing", *[""] * 9, failure])
    return Listing(COLUMNS, rows, NUMBERS, empty="no worker is alive; start one with `modelyard worker`")


def _row(info: WorkerInfo, replica: Replica) -> list[object]:
    warnings = [*replica.warnings, *(f"{each.package} differs" for each in replica.requirements)]
    return [
        info.worker,
        replica.worker_id,
        info.model_name,
        info.model_version,
        replica.state,
        replica.device,
        replica.host,
        replica.pid,
        number(replica.memory_bytes / 2**20, 0, "MiB") if replica.memory_bytes else "",
        replica.jobs_done,
        replica.jobs_failed,
        number(replica.batch_samples_mean),
        number(replica.inference_ms.p50, 2, "ms"),
        number(replica.inference_ms.p99, 2, "ms"),
        "; ".join(warnings),
    ]
