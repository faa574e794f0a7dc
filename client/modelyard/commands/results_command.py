"""`modelyard results`: jobs by their ids, and their outcomes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelyard.commands.console_output import (
    JSON_OPTION,
    Listing,
    document,
    examples,
    number,
    waiting,
    write_json,
    write_listing,
)
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.exit_status import FAILED, JOB_UNSUCCESSFUL, NO_OUTCOME
from modelyard.commands.job_view import show_job

if TYPE_CHECKING:
    from modelyard import Job, ModelyardError

COLUMNS = ("job", "status", "model", "version", "worker", "samples", "took", "error")
EXAMPLES = examples(
    "modelyard results --wait 60 $id",
    "modelyard results $first $second --output outcomes.json",
    "modelyard results --json $id | jq '.jobs[0].predictions'",
)


@click.command("results", epilog=EXAMPLES)
@click.argument("job_ids", nargs=-1, required=True, metavar="ID...")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Time to wait for the outcomes.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the jobs: one JSON document, or one job a line if it is named .ndjson.",
)
@JSON_OPTION
@URL_OPTION
def command(
    job_ids: tuple[str, ...], wait_s: float, output: Path | None, as_json: bool, url: str | None
) -> None:
    """Show the jobs with these ids or URLs.

    --json writes the document of GET /results: {"jobs": […]}, with the error in the place of a job that cannot be
    read. Exit status: 0 all succeeded, 1 one cannot be read, 4 one has failed, expired or been cancelled, 5 one has
    no outcome yet.
    """
    from modelyard import Client, Job

    ids = [each.rstrip("/").rpartition("/")[2] for each in job_ids]
    url = controller_url(url)
    with Client(url) as client, waiting("waiting for outcomes"):
        found = client.jobs(ids, wait_s)
    told = [
        document(each) if isinstance(each, Job) else {"id": job_id, "code": each.code, "detail": each.detail}
        for job_id, each in zip(ids, found, strict=True)
    ]
    if output:
        _write(output, told)
    if as_json:
        write_json({"jobs": told})
    elif len(found) == 1 and isinstance(found[0], Job):
        show_job(found[0], url)
    else:
        rows = [_row(job_id, each) for job_id, each in zip(ids, found, strict=True)]
        write_listing(Listing(COLUMNS, rows, {"version", "worker", "samples", "took"}))
    sys.exit(_status(found))


def _write(output: Path, jobs: Sequence[Any]) -> None:
    import msgspec

    encoder = msgspec.json.Encoder()
    is_lines = output.suffix in (".ndjson", ".jsonl")
    output.write_bytes(encoder.encode_lines(jobs) if is_lines else encoder.encode({"jobs": jobs}) + b"\n")


def _row(job_id: str, found: Job | ModelyardError) -> list[object]:
    from modelyard import Job

    if not isinstance(found, Job):
        return [job_id, "unknown", None, None, None, None, None, found.detail]
    return [
        found.id,
        found.status,
        found.model_name,
        found.model_version,
        found.worker,
        found.batch_samples,
        number(found.end_to_end_ms, 1, "ms"),
        found.error.detail if found.error else "",
    ]


def _status(found: Sequence[Job | ModelyardError]) -> int:
    from modelyard import Job

    jobs = [each for each in found if isinstance(each, Job)]
    if len(jobs) < len(found):
        return FAILED
    if any(job.done and job.status != "succeeded" for job in jobs):
        return JOB_UNSUCCESSFUL
    return 0 if all(job.done for job in jobs) else NO_OUTCOME
