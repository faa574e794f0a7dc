"""Reads the ids of many jobs from a query, and writes their answers into one document."""

from __future__ import annotations

import asyncio

from app.ledger.controller_ledger import JobView
from app.server_errors import ModelyardError, ParameterError
from controller.http.job_json import view_json
from controller.http.problems import problem

MAX_JOBS = 1000
JOBS_PER_TURN = 64  # of the event loop: encoding 1,000 jobs takes tens of milliseconds


def job_ids_of(ids: str) -> list[str]:
    """The ids of a query parameter.

    Raises:
        ParameterError: There are no ids, or too many.
    """
    job_ids = [job_id.strip() for job_id in ids.split(",")] if ids else []
    if not 1 <= len(job_ids) <= MAX_JOBS:
        raise ParameterError(f"ids holds {len(job_ids):,} job ids; expected 1 to {MAX_JOBS:,}")
    return job_ids


async def jobs_json(found: list[JobView | ModelyardError], prefix: str) -> bytes:
    """A document with each job, or the problem in its place."""
    written: list[bytes] = []
    for start in range(0, len(found), JOBS_PER_TURN):
        written += [job_or_problem_json(each, prefix) for each in found[start : start + JOBS_PER_TURN]]
        await asyncio.sleep(0)
    return b'{"jobs":[%b]}' % b",".join(written)


def job_or_problem_json(found: JobView | ModelyardError, prefix: str) -> bytes:
    """A job as JSON, or the problem document of the error in its place."""
    try:
        return view_json(found, prefix) if isinstance(found, JobView) else problem(found)[2]
    except ModelyardError as error:  # its outputs are unreadable
        return problem(error)[2]
