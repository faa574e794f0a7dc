"""Sends the rows of a source in chunks, several at a time, and appends their outcomes to the part file in order."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple, cast

from modelyard.batch.part_file import Head, Line, PartFile
from modelyard.batch.row_outputs import row_outputs
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

FIRST_ROWS = 32  # in the first request, which finds out how rows may be sent
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
    """What a run was asked for.

    Attributes:
        asked: Fingerprint of the input and of the options that decide about the outcomes.
        options: Which version to use.
        params: Parameters of the version.
        n_rows: Rows in a request.
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
        head = part.head or Head(asked=plan.asked, options={**plan.options})
        self._run_id, self._encoding, self._options = head.run_id, head.encoding, dict(head.options)

    async def run(self) -> None:
        """Predict the rows that are left.

        Raises:
            InputError: The source is damaged, or no row of the first request was taken.
            ModelyardError: The controller is not available after all attempts, or refuses for a reason that applies to
                every row.
        """
        self._on_rows(self._part.n_rows)
        chunks = self._chunks()
        if self._part.head is None:
            first = next(chunks, None)
            if first is None:
                return
            lines = await self._first(first)
            self._part.begin(
                Head(
                    asked=self._plan.asked,
                    run_id=self._run_id,
                    encoding=self._encoding,
                    options=self._options,
                )
            )
            self._append(lines)
        async with aclosing(self._outcomes(chunks)) as outcomes:
            async for lines in outcomes:
                self._append(lines)

    async def _outcomes(self, chunks: Iterator[Chunk]) -> AsyncGenerator[list[Line], None]:
        running = run_all_async(self._lines, chunks, self._plan.concurrency, ordered=True, progress=False)
        async with aclosing(running):
            async for _, lines in running:
                yield lines

    def _append(self, lines: list[Line]) -> None:
        self._part.append(lines)
        self._on_rows(len(lines))

    def _chunks(self) -> Iterator[Chunk]:
        """The rows that are left; in a new run the first chunk is small."""
        start, is_new = self._part.n_rows, self._part.head is None
        for rows in self._source.chunks(start, self._plan.n_rows):
            size = count(rows)
            if is_new and size > FIRST_ROWS:
                yield Chunk(start, cut(rows, 0, FIRST_ROWS))
                yield Chunk(start + FIRST_ROWS, cut(rows, FIRST_ROWS, size))
            else:
                yield Chunk(start, rows)
            start, is_new = start + size, False

    async def _first(self, chunk: Chunk) -> list[Line]:
        """Send the first rows in each way, until some are taken."""
        refused: list[Line] = []
        for place in range(len(self._source.encodings)):
            self._encoding = place
            try:
                lines = await self._lines(chunk)
            except UnsupportedError:  # the version takes no body of this kind
                continue
            if any(not each.code for each in lines):
                return lines
            refused = refused or lines
        reason = refused[0].reason if refused else "they are of a kind that the version does not take"
        raise InputError(f"none of the first {count(chunk.rows)} rows was predicted: {reason}")

    async def _lines(self, chunk: Chunk) -> list[Line]:
        """The outcome of each row of a chunk."""
        start, rows = chunk
        size = count(rows)
        bad = (
            [place for place, row in enumerate(rows) if isinstance(row, Unreadable)]
            if isinstance(rows, list)
            else []
        )
        if bad:
            line = Line(row=start + bad[0], code="input_unreadable", reason=rows[bad[0]].reason)
            return await self._around(chunk, bad[0], line)
        try:
            return await self._predicted(chunk)
        except OF_THE_REQUEST:
            raise
        except (InputError, TooLargeError, JobFailedError) as error:
            code, reason = _reason(error)
            if size == 1 or code in FATAL_CODES:
                return [Line(row=start + place, code=code, reason=reason) for place in range(size)]
            named = NAMED_ROW.match(reason)
            if named and int(named[1]) < size:
                place = int(named[1])
                reason = reason.replace(named[0], f"row {start + place}", 1)
                return await self._around(chunk, place, Line(row=start + place, code=code, reason=reason))
            half = size // 2
            return [
                *await self._lines(Chunk(start, cut(rows, 0, half))),
                *await self._lines(Chunk(start + half, cut(rows, half, size))),
            ]

    async def _around(self, chunk: Chunk, place: int, line: Line) -> list[Line]:
        """The outcomes of a chunk without one row, which has its line already."""
        start, rows = chunk
        before, after = cut(rows, 0, place), cut(rows, place + 1, count(rows))
        return [
            *(await self._lines(Chunk(start, before)) if place else ()),
            line,
            *(await self._lines(Chunk(start + place + 1, after)) if count(after) else ()),
        ]

    async def _predicted(self, chunk: Chunk) -> list[Line]:
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
        return [
            Line(
                row=chunk.start + place,
                version=job.model_version,
                latency_ms=job.end_to_end_ms,
                outputs=outputs,
            )
            for place, outputs in enumerate(row_outputs(job, size))
        ]


def _reason(error: ModelyardError) -> tuple[str, str]:
    """The code and the sentence for a row that was set aside."""
    if isinstance(error, JobFailedError) and error.job.error:
        return error.job.error.code, error.job.error.detail
    return error.code, error.detail
