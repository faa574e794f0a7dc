"""Streams the pool to every open page: encoded once per heartbeat, independent of the number of pages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec

from app.clock import PoolClock
from app.redis import keys
from app.redis.client import ledger_errors
from app.server_errors import LedgerUnavailableError, TooManyPagesError
from controller.http.pool_document import pool_document
from controller.page.history import History, Newest
from controller.pool_watcher import PoolWatcher
from modelyard.schemas import WorkerInfo

logger = logging.getLogger(__name__)
MOST_PAGES = 200
KEEP_EVERY_S = 30.0
KEPT_FOR_S = 86_400


class PoolNow(msgspec.Struct):
    """The event `pool`.

    Attributes:
        workers: Those of `GET /workers`, without their examples: these are large, do not change, and one section needs
            them.
    """

    workers: list[WorkerInfo]
    newest: Newest


class Feed:
    """The event stream of the page.

    Args:
        client: Asynchronous Redis client that returns bytes; Redis keeps the history across restarts.
        watcher: Holds the view of the pool.
        heartbeat_s: Seconds between two readings.
        links: Addresses by name: of other programs' pages, and of batch files if the controller takes them.
    """

    def __init__(
        self,
        client: Any,
        watcher: PoolWatcher,
        clock: PoolClock,
        heartbeat_s: float,
        links: Mapping[str, str],
    ) -> None:
        self._client = client
        self._watcher = watcher
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._links = _event("links", msgspec.json.encode(links))
        self._history = History()
        self._n_pages = 0
        self._event = b""
        self._news = asyncio.Event()
        self._is_over = False

    async def run(self) -> None:
        """Read the view each heartbeat, until cancelled."""
        await self._restore()
        keep_at_s = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if not self._watcher.reachable:
                self._tell(_event("away", b"{}"))
                continue
            view, now_ms = self._watcher.view, self._clock.now_ms()
            self._history.add(view, now_ms)
            if self._n_pages:
                self._tell(self._pool())
            if loop.time() >= keep_at_s:
                keep_at_s = loop.time() + KEEP_EVERY_S
                await self._keep()

    def listen(self) -> AsyncGenerator[bytes, None]:
        """The stream of one page: the links, the history, the current pool, and then each change.

        Raises:
            TooManyPagesError: The maximum number of pages is open.
        """
        if self._n_pages >= MOST_PAGES:
            raise TooManyPagesError(
                f"{MOST_PAGES} pages are open at this controller, the most that it serves; close some"
            )
        return self._listen()

    def close(self) -> None:
        """End all streams."""
        self._is_over = True
        self._tell(b"")

    async def _listen(self) -> AsyncGenerator[bytes, None]:
        self._n_pages += 1
        try:
            yield self._links
            yield _event("history", self._history.encode())
            yield self._pool()
            while not self._is_over:
                await self._news.wait()
                if not self._is_over:
                    yield self._event
        finally:
            self._n_pages -= 1

    def _pool(self) -> bytes:
        document = pool_document(self._watcher.view, self._clock.now_ms())
        workers = [msgspec.structs.replace(row, example=None) for row in document.workers]
        return _event("pool", msgspec.json.encode(PoolNow(workers, self._history.newest())))

    def _tell(self, event: bytes) -> None:
        self._event = event
        self._news.set()
        self._news = asyncio.Event()

    async def _keep(self) -> None:
        with contextlib.suppress(LedgerUnavailableError), ledger_errors():  # a full Redis does not store it
            await self._client.set(keys.HISTORY, self._history.encode(), ex=KEPT_FOR_S)

    async def _restore(self) -> None:
        with contextlib.suppress(LedgerUnavailableError), ledger_errors():
            kept = await self._client.get(keys.HISTORY)
            if kept:
                try:
                    self._history.restore(kept, self._clock.now_ms())
                except msgspec.DecodeError as error:
                    logger.warning("the history of the pool cannot be read and begins anew: %s", error)


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
