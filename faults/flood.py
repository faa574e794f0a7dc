"""Overload: an open-loop load generator, which posts on time regardless of earlier answers."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import orjson

TICK_S = 0.002
MOST_CONNECTIONS = 1024
LONGEST_IDLE_S = 2.0
LAST_ANSWERS_S = 10.0


@dataclass
class Answers:
    """The answers to the posts.

    Attributes:
        statuses: Number of answers per HTTP status.
        latency_ms: Latencies per HTTP status.
        retry_after_s: Retry-After of the refused posts, in order.
        job_ids: Ids of the accepted or finished jobs.
        unsent: Posts that were due while every connection was busy.
        broken: Posts whose connection ended without an answer.
        returned: Posts repeated after Retry-After, by number of refusals.
        refused_again: Repeated posts that were refused again.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    latency_ms: dict[int, list[float]] = field(default_factory=dict)
    retry_after_s: list[float] = field(default_factory=list)
    job_ids: list[str] = field(default_factory=list)
    unsent: int = 0
    broken: int = 0
    returned: Counter[int] = field(default_factory=Counter)
    refused_again: Counter[int] = field(default_factory=Counter)

    @property
    def refused(self) -> int:
        """Posts answered 429."""
        return self.statuses[429]


async def flood_from_another_process(
    url: str, query: str, body: Any, rate_per_s: float, seconds: float, key: str = "", *, obeys: bool = False
) -> Answers:
    """Run `flood` in another process, so that its timing does not depend on this one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(executor, _flood, url, query, body, rate_per_s, seconds, key, obeys)


def _flood(*arguments: Any) -> Answers:
    return asyncio.run(flood(*arguments))


async def flood(
    url: str, query: str, body: Any, rate_per_s: float, seconds: float, key: str = "", obeys: bool = False
) -> Answers:
    """Post the same body at a steady rate, then wait for the last answers.

    Args:
        key: API key to post with.
        obeys: Whether a refused post is repeated after Retry-After; the call then also waits for the last repetition.
    """
    where = urlsplit(url)
    assert where.hostname
    assert where.port
    data = orjson.dumps(body)
    head = f"POST /predict?{query} HTTP/1.1\r\nhost: {where.netloc}\r\ncontent-length: {len(data)}\r\n"
    head += f"authorization: Bearer {key}\r\n\r\n" if key else "\r\n"
    source = _Flood(where.hostname, where.port, head.encode() + data, obeys=obeys)
    try:
        await source.run(rate_per_s, seconds)
    finally:
        source.close()
    return source.answers


class _Flood:
    """Connections, each reused as soon as its answer has arrived."""

    def __init__(self, host: str, port: int, request: bytes, *, obeys: bool) -> None:
        self.answers = Answers()
        self.idle: list[_Connection] = []
        self._host, self._port, self._request = host, port, request
        self.waiting: set[_Connection] = set()
        self.obeys = obeys
        self.returns: set[asyncio.Task[None]] = set()

    async def run(self, rate_per_s: float, seconds: float) -> None:
        """Post for `seconds`."""
        begun_at, sent = time.monotonic(), 0
        while (elapsed_s := time.monotonic() - begun_at) < seconds:
            while sent < elapsed_s * rate_per_s:
                sent += 1
                await self._post()
            await asyncio.sleep(TICK_S)
        while self.returns:
            await asyncio.wait(self.returns)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_answered(), LAST_ANSWERS_S)

    async def _all_answered(self) -> None:
        for connection in list(self.waiting):
            await connection.answered.wait()

    def close(self) -> None:
        """Close every connection."""
        for connection in [*self.idle, *self.waiting]:
            connection.transport.close()

    def return_after(self, seconds: float, n_refusals: int) -> None:
        """Post again after so many seconds."""
        task = asyncio.create_task(self._return(seconds, n_refusals))
        self.returns.add(task)
        task.add_done_callback(self.returns.discard)

    async def _return(self, seconds: float, n_refusals: int) -> None:
        await asyncio.sleep(seconds)
        self.answers.returned[n_refusals] += 1
        await self._post(n_refusals)

    async def _post(self, n_refusals: int = 0) -> None:
        connection = self._fresh()
        if connection is None:
            if len(self.waiting) == MOST_CONNECTIONS:
                self.answers.unsent += 1
                return
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: _Connection(self), self._host, self._port)
        self.waiting.add(connection)
        connection.n_refusals = n_refusals
        connection.post(self._request)

    def _fresh(self) -> _Connection | None:
        # A server may close a connection that has been idle for a while just as it is reused.
        while self.idle:
            connection = self.idle.pop()
            if time.monotonic() - connection.posted_at < LONGEST_IDLE_S:
                return connection
            connection.transport.close()
        return None


class _Connection(asyncio.Protocol):
    """One request at a time."""

    transport: asyncio.Transport

    def __init__(self, owner: _Flood) -> None:
        self._owner = owner
        self.answered = asyncio.Event()
        self._received = b""
        self.posted_at = 0.0
        self.n_refusals = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def post(self, request: bytes) -> None:
        """Send a request."""
        self.answered.clear()
        self.posted_at = time.monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, ended, body = self._received.partition(b"\r\n\r\n")
        if ended and len(body) >= int(_header(head, b"content-length")):
            self._received = b""
            self._answered(head, body)
            self._owner.waiting.discard(self)
            self._owner.idle.append(self)
            self.answered.set()

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._owner.waiting:
            self._owner.waiting.discard(self)
            self._owner.answers.broken += 1
            self.answered.set()
        elif self in self._owner.idle:
            self._owner.idle.remove(self)

    def _answered(self, head: bytes, body: bytes) -> None:
        answers, status = self._owner.answers, int(head[9:12])
        answers.statuses[status] += 1
        latency_ms = (time.monotonic() - self.posted_at) * 1000
        answers.latency_ms.setdefault(status, []).append(latency_ms)
        if status == 429:
            retry_after_s = float(_header(head, b"retry-after"))
            answers.retry_after_s.append(retry_after_s)
            answers.refused_again[self.n_refusals] += self.n_refusals > 0
            if self._owner.obeys:
                self._owner.return_after(retry_after_s, self.n_refusals + 1)
        elif status in (200, 202):
            answers.job_ids.append(orjson.loads(body)["id"])


def _header(head: bytes, name: bytes) -> bytes:
    return head.lower().partition(b"\r\n" + name + b":")[2].partition(b"\r\n")[0].strip()
