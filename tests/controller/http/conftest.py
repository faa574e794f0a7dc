"""A controller behind a real socket, and callers who speak HTTP byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from controller.http.connection import Connection
from controller.http.server import ControllerServer, make_server
from tests.controller.conftest import HandWorker, Serve, Served, until

BODY = b'{"data": [1, 2]}'
LIMIT_BYTES = 64 * 1024
SMALL_BUFFER_BYTES = 16 * 1024


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Speaks HTTP byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def answer(self) -> Answer:
        answer = await self.head()
        async with asyncio.timeout(20):
            answer.body = await self._reader.readexactly(int(answer.headers.get("content-length", 0)))
        return answer

    async def head(self) -> Answer:
        """An answer that has no body, whatever its headers say."""
        async with asyncio.timeout(20):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
        return Answer(int(head[0].split()[1]), headers, b"")

    async def closed(self) -> bool:
        async with asyncio.timeout(20):
            return await self._reader.read(1) == b""


class Site:
    """A controller behind a socket."""

    def __init__(self, served: Served, server: ControllerServer, port: int) -> None:
        self.served = served
        self.server = server
        self.address = ("127.0.0.1", port)

    @asynccontextmanager
    async def caller(self, **options: Any) -> AsyncIterator[Caller]:
        own = socket.socket()
        if options:  # set before the handshake: a window that was granted and shrinks stops both directions
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        own.connect(self.address)
        reader, writer = await asyncio.open_connection(sock=own, **options)
        try:
            yield Caller(reader, writer)
        finally:
            writer.transport.abort()  # whatever the controller has not read
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def connection(self) -> Connection:
        """The one connection that is open."""
        (connection,) = self.server.connections.open
        return connection


OpenSite = Callable[..., Awaitable[Site]]


@pytest.fixture(params=[True, False], ids=["fast", "plain"])
def fast_http(request: pytest.FixtureRequest) -> bool:
    """Whether predictions may take the short way: everything is answered alike without it."""
    return bool(request.param)


# For tests that send no plain prediction, which go the same way either way.
once = pytest.mark.parametrize("fast_http", [True], ids=["fast"], indirect=True)


@pytest.fixture
async def open_site(
    serve: Serve, hand_worker: Callable[..., HandWorker], free_port: Callable[[], int], fast_http: bool
) -> AsyncIterator[OpenSite]:
    """`await open_site(**settings)` starts a controller whose worker answers at once, unless `worker` is given."""
    running: list[tuple[ControllerServer, asyncio.Task[None], asyncio.Task[None] | None]] = []

    async def start(worker: HandWorker | None = None, **settings: Any) -> Site:
        working = None if worker else asyncio.create_task(work(hand_worker()))
        port = free_port()
        fields = {"host": "127.0.0.1", "port": port, "max_body_bytes": LIMIT_BYTES, "fast_http": fast_http}
        served = await serve(**{**fields, **settings})
        server = make_server(served.app, served.services.settings, access_log=False)
        server.config.lifespan = "off"  # `serve` has opened it
        running.append((server, asyncio.create_task(server.serve(server.listen())), working))
        await until(lambda: server.started, "the server listens")
        return Site(served, server, port)

    yield start
    for server, serving, working in running:
        if working:
            working.cancel()
        server.should_exit = True
        await serving


async def work(worker: HandWorker) -> None:
    while True:
        worker.finish(await worker.claimed())


@pytest.fixture
async def site(open_site: OpenSite) -> Site:
    return await open_site()


def request(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((line + b" HTTP/1.1", b"host: localhost", *headers, b"", body))


def post(*headers: bytes, body: bytes = BODY, query: bytes = b"?wait=5") -> bytes:
    length = b"content-length: %d" % len(body)
    return request(b"POST /predict" + query, *headers, length, body=body)
