"""A load balancer: forwards each connection to the next controller whose probe succeeds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from typing import Self
from urllib.parse import urlsplit

import httpx

from faults.job_load import http_client

PROBE = "/readyz/read"
PROBE_S = 1.0  # seconds between two probes
PROBE_TIMEOUT_S = 2.0
CHUNK_BYTES = 1 << 16


class Balancer:
    """Listens on a port of its own while the context is open.

    Args:
        urls: The controllers.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.url = ""
        self._urls = list(urls)
        self._ready: set[str] = set()
        self._turn = itertools.count()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        http = await self._stack.enter_async_context(http_client(timeout=PROBE_TIMEOUT_S))
        await asyncio.gather(*(self._look(http, url) for url in self._urls))
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._stack.callback(server.close)
        for url in self._urls:
            self._stack.callback(asyncio.create_task(self._watch(http, url)).cancel)
        host, port = server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _watch(self, http: httpx.AsyncClient, url: str) -> None:
        while True:
            await self._look(http, url)
            await asyncio.sleep(PROBE_S)

    async def _look(self, http: httpx.AsyncClient, url: str) -> None:
        try:
            is_ready = (await http.get(url + PROBE)).status_code == 200
        except httpx.HTTPError:
            is_ready = False
        (self._ready.add if is_ready else self._ready.discard)(url)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await self._connect()
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass_on(reader, upstream[1]), _pass_on(upstream[0], writer))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        ready = [url for url in self._urls if url in self._ready]
        where = urlsplit(ready[next(self._turn) % len(ready)] if ready else self._urls[0])
        return await asyncio.open_connection(where.hostname, where.port)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    writer.close()
