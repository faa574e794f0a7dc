"""Sends the rows of a source in chunks, several at a time, and appends their outcomes to the part file in order."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, cast

from modelyard.batch.output_columns import output_columns
from modelyard.batch.part_file import Finished, Head, PartFile
from modelyard.batch.sources import Rows, Source, Unreadable, count, cut
from modelyard.calls import SubmitOptions, of_version
from modelyard.client_errors import JobExpiredError, JobFailedError
from modelyard.errors import (
    BodyCodingError,
    ContradictionError,
    IdempotencyConflictError,
    InputError,
    JobGoneError,
    MalformedRequestError,
    ModelyardError,
    ParameterError,
    ParamsError,
    TooLargeError,
    UnsupportedError,
)
from modelyard.http import AsyncClient
from modelyard.inputs import Params
from modelyard.mapping import run_all_async
from modelyard.schemas import Job

FIRST_ROWS = 32  # in the first request, which finds out how rows may be sent
REQUEST_MS = 1000.0  # of inference; other callers wait behind it
DEADLINE_S = 600.0
ATTEMPTS = 3  # for rows whose job has expired
NAMED_ROW = re.compile(r"row (\d+)\b")
OF_THE_REQUEST = (
    BodyCodingError,
    ContradictionError,
    MalformedRequestError,
    ParameterError,
    ParamsError,
)
# The worker died of these rows: they are not sent again in smaller parts, which would end it several times.
FATAL_CODES = frozenset({"job_quarantined", "inference_timeout"})


class Chunk(NamedTuple):
    """Consecutive rows, the first of them at `start`."""

    start: int
    rows: Rows


@dataclass(frozen=True)
class BatchPlan:
    """The options of a run.

    Attributes:
        asked: Fingerprint of the input and of the options that decide about the outcomes.
        options: Which version to use.
        params: Parameters of the version.
        n_rows: Rows in a request, at most: fewer if the version is slow, or if the controller takes fewer.
        concurrency: Requests at the same time.
        deadline_s: Seconds until the job of a request expires.
    """

    asked: str
    options: SubmitOptions
    params: Params | None
    n_rows: int
    concurrency: int
    deadline_s: float = DEADLINE_S


class BatchRun:
    """Predicts all rows of a source that a part file does not have yet.

    All rows go to the version that the first request is routed to. Rows that are refused, or that the model fails on,
    are set aside: the row that the error names, or else the one that is found by halving.

    Args:
        on_rows: Called with the number of rows whenever some are finished.
    """

    def __init__(
        self,
        client: AsyncClient,
        source: Source,
        part: PartFile,
        plan: BatchPlan,
        on_rows: Callable[[int], object] = lambda n_rows: None,
    ) -> None:
        self._client = client
        self._source = source
        self._part = part
        self._plan = plan
        self._on_rows = on_rows
        head = part.head or Head(asked=plan.asked, rows=plan.n_rows, options={**plan.options})
        self._run_id, self._encoding, self._options = head.run_id, head.encoding, dict(head.options)
        self._n_rows = head.rows
        self._most_rows = sys.maxsize  # that the controller takes

    async def run(self) -> None:
        """Predict the rows that are left.

        Raises:
            InputError: The source is damaged, or no row of the first request was taken.
            ModelyardError: The controller is not available after all attempts, or refuses for a reason that applies to
                every row.
        """
        self._on_rows(self._part.n_rows)
        if self._part.head is None:
            first = next(self._source.chunks(0, min(FIRST_ROWS, self._n_rows)), None)
            if first is None:
                return
            finished = await self._first(Chunk(0, first))
            self._part.begin(
                Head(
                    asked=self._plan.asked,
                    rows=self._n_rows,
                    run_id=self._run_id,
                    encoding=self._encoding,
                    options=self._options,
                )
            )
            self._append(finished)
        running = run_all_async(
            self._finish, self._chunks(), self._plan.concurrency, ordered=True, progress=False
        )
        async with aclosing(running):
            async for _, finished in running:
                self._append(finished)

    def _append(self, finished: list[Finished]) -> None:
        n_before = self._part.n_rows
        self._part.append(finished)
        self._on_rows(self._part.n_rows - n_before)

    def _chunks(self) -> Iterator[Chunk]:
        """The rows that are left."""
        start = self._part.n_rows
        for rows in self._source.chunks(start, self._n_rows):
            yield from self._pieces(Chunk(start, rows))
            start += count(rows)

    def _pieces(self, chunk: Chunk) -> Iterator[Chunk]:
        """Consecutive parts of a chunk that have no more rows than the controller takes."""
        start, rows = chunk
        place = 0
        while place < count(rows):
            part = cut(rows, place, min(place + self._most_rows, count(rows)))
            yield Chunk(start + place, part)
            place += count(part)

    async def _first(self, chunk: Chunk) -> list[Finished]:
        """Send the first rows in each way, until some are taken."""
        refused: list[Finished] = []
        for place in range(len(self._source.encodings)):
            self._encoding = place
            try:
                finished = await self._finish(chunk)
            except UnsupportedError:  # the version takes no body of this kind
                continue
            if any(not each.code for each in finished):
                return finished
            refused = refused or finished
        reason = refused[0].reason if refused else "they are of a kind that the version does not take"
        n_rows = count(chunk.rows)
        which = "the first row was not" if n_rows == 1 else f"none of the first {n_rows} rows was"
        raise InputError(f"{which} predicted: {reason}")

    async def _finish(self, chunk: Chunk) -> list[Finished]:
        """The outcome of each row of a chunk."""
        start, rows = chunk
        size = count(rows)
        bad = (
            [place for place, row in enumerate(rows) if isinstance(row, Unreadable)]
            if isinstance(rows, list)
            else []
        )
        if bad:
            return await self._around(chunk, bad[0], "input_unreadable", rows[bad[0]].reason)
        try:
            return await self._predicted(chunk)
        except OF_THE_REQUEST:
            raise
        except (InputError, TooLargeError, JobFailedError) as error:
            code, reason = _reason(error)
            if isinstance(error, TooLargeError) and error.max_samples and error.max_samples < size:
                self._most_rows = error.max_samples
                return [each for piece in self._pieces(chunk) for each in await self._finish(piece)]
            if size == 1 or code in FATAL_CODES:
                return [Finished(start=start, rows=size, code=code, reason=reason)]
            named = NAMED_ROW.match(reason)
            if named and int(named[1]) < size:
                place = int(named[1])
                reason = reason.replace(named[0], f"row {start + place}", 1)
                return await self._around(chunk, place, code, reason)
            half = size // 2
            return [
                *await self._finish(Chunk(start, cut(rows, 0, half))),
                *await self._finish(Chunk(start + half, cut(rows, half, size))),
            ]

    async def _around(self, chunk: Chunk, place: int, code: str, reason: str) -> list[Finished]:
        """The outcomes of a chunk without one row, which is set aside."""
        start, rows = chunk
        before, after = cut(rows, 0, place), cut(rows, place + 1, count(rows))
        return [
            *(await self._finish(Chunk(start, before)) if place else ()),
            Finished(start=start + place, rows=1, code=code, reason=reason),
            *(await self._finish(Chunk(start + place + 1, after)) if count(after) else ()),
        ]

    async def _predicted(self, chunk: Chunk) -> list[Finished]:
        """Send a chunk; while its job expires, again."""
        size, samples = count(chunk.rows), self._source.encodings[self._encoding](chunk.rows)
        # A run that is repeated after a kill gets the jobs that were under way, and no new ones.
        key = f"{self._run_id}.{self._encoding}.{chunk.start}-{chunk.start + size}"
        for attempt in range(ATTEMPTS):
            deadline_s = self._plan.deadline_s
            options = {**self._options, "deadline_s": deadline_s, "idempotency_key": f"{key}.{attempt}"}
            try:
                job = await self._client.predict(
                    samples, params=self._plan.params, wait_s=deadline_s + 60, **cast(SubmitOptions, options)
                )
                break
            except (JobExpiredError, JobGoneError, IdempotencyConflictError):
                if attempt == ATTEMPTS - 1:
                    raise
        if not self._options.get("worker"):
            self._options |= of_version(job)
        if self._part.head is None:
            self._n_rows = min(self._n_rows, fitting_rows(job))
        return [
            Finished(
                start=chunk.start,
                rows=size,
                version=job.model_version,
                latency_ms=job.end_to_end_ms,
                outputs=output_columns(job, size),
            )
        ]


def fitting_rows(job: Job) -> int:
    """Number of rows that keep a worker busy for `REQUEST_MS`, by the time that a job took."""
    row_ms = (job.inference_ms or 0) / (job.batch_samples or 1)
    return max(1, int(REQUEST_MS / row_ms)) if row_ms else sys.maxsize


def _reason(error: ModelyardError) -> tuple[str, str]:
    """The code and the sentence for a row that was set aside."""
    if isinstance(error, JobFailedError) and error.job.error:
        return error.job.error.code, error.job.error.detail
    return error.code, error.detail
