"""Jobs as a stream of server-sent events: each when its status changes, until all have their outcomes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from fastapi import Response

from app.ledger.controller_ledger import JobView
from app.server_errors import LedgerUnavailableError, ModelyardError
from controller.admission.authentication import Caller
from controller.http.many_jobs import job_or_problem_json
from controller.http.responses import EventResponse
from controller.results import Results, is_open

KEEP_ALIVE_S = 15.0  # a comment after this silence, so that no proxy closes the connection
RETRY_S = 1.0  # while Redis does not answer
END = "end"  # id of the last event

News = Mapping[str, JobView | ModelyardError]


async def event_stream(
    results: Results, job_ids: list[str], caller: Caller, prefix: str, last_event_id: str | None
) -> Response:
    """The answer to a request for events; 204 where a browser reconnects after the last one, so that it stops.

    Raises:
        ModelyardError: The only job cannot be read.
        LedgerUnavailableError: Redis does not answer.
    """
    if last_event_id == END:
        return Response(status_code=204)
    # Read before the stream, whose status is 200. The stream itself holds nothing until it starts: a caller who has
    # left by then would leave it behind.
    first, *others = await results.jobs(job_ids, caller)
    if not others and isinstance(first, ModelyardError):
        raise first
    return EventResponse(_Events(results, job_ids, caller, prefix).written())


class _Events:
    """The events that one caller has received."""

    def __init__(self, results: Results, job_ids: list[str], caller: Caller, prefix: str) -> None:
        self._results = results
        self._caller = caller
        self._prefix = prefix
        self._told: dict[str, str] = {}
        self._open = dict.fromkeys(job_ids)

    async def written(self) -> AsyncGenerator[bytes, None]:
        """The events: the state of each job, each change, and `end`. While Redis is away, the stream goes on."""
        while True:
            try:
                stream = self._results.follow(list(self._open), self._caller, silence_s=KEEP_ALIVE_S)
                async with aclosing(stream):
                    async for news in stream:
                        yield self._write(news)
                break
            except LedgerUnavailableError:
                yield b":\n\n"
                await asyncio.sleep(RETRY_S)
        if not self._open:  # otherwise this controller stops, and callers reconnect to another one
            yield b"event: end\nid: %b\ndata: {}\n\n" % END.encode()

    def _write(self, news: News) -> bytes:
        written = [self._event(job_id, found) for job_id, found in news.items()]
        return b"".join(written) or b":\n\n"

    def _event(self, job_id: str, found: JobView | ModelyardError) -> bytes:
        is_job = isinstance(found, JobView)
        status = found.status if isinstance(found, JobView) else found.code
        if not is_open(found):
            self._open.pop(job_id, None)
        if self._told.get(job_id) == status:
            return b""
        self._told[job_id] = status
        data = job_or_problem_json(found, self._prefix)
        return b"event: %b\nid: %b\ndata: %b\n\n" % (b"job" if is_job else b"problem", job_id.encode(), data)
