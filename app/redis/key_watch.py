"""Wakes tasks when keys of Redis change, so that they need not poll.

Redis remembers the keys that a connection has read, and notifies it once when one of them changes: the invalidation
messages of client-side caching (`CLIENT TRACKING`, mode OPTIN). Waiting costs Redis an entry of its tracking table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from math import inf
from typing import Any

from app.redis.client import AsyncClient
from app.redis.link import RedisLink


class Watch:
    """The keys that one task waits for.

    Args:
        link: Tracks keys.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._changed: set[str] = set()
        self._news = asyncio.Event()

    async def arm(self, keys: Iterable[str]) -> bool:
        """Have Redis notify of the next change of each key; False if it cannot, so that the task must poll.

        Read the keys afterwards: an earlier reading may have missed a change.
        """
        loop = asyncio.get_running_loop()
        replies: list[asyncio.Future[Any]] = [loop.create_future(), loop.create_future()]
        self._link.call(partial(_settle, replies[0]), "CLIENT", "CACHING", "YES")
        self._link.call(partial(_settle, replies[1]), "EXISTS", *keys)
        return not any(isinstance(reply, Exception) for reply in await asyncio.gather(*replies))

    async def wait(self, timeout_s: float) -> set[str]:
        """Wait for news; the keys that have changed since the last call, or none after `timeout_s` seconds."""
        with suppress(TimeoutError):
            # Not `wait_for`, which in Python 3.11 swallows a cancellation that arrives together with the news.
            async with asyncio.timeout(None if timeout_s == inf else timeout_s):
                await self._news.wait()
        self._news.clear()
        changed, self._changed = self._changed, set()
        return changed

    def tell(self, keys: Iterable[str] = ()) -> None:
        """Wake the task."""
        self._changed.update(keys)
        self._news.set()


class KeyWatch:
    """All watches of one process, on a connection of their own.

    Args:
        client: Asynchronous Redis client that returns bytes.
        timeout_s: Seconds after which a command fails.
    """

    def __init__(self, client: AsyncClient, timeout_s: float) -> None:
        self._link = RedisLink(client, timeout_s, on_changes=self._hear)
        self._watches: dict[Watch, frozenset[str]] = {}
        self._by_key: dict[str, set[Watch]] = {}

    def __len__(self) -> int:
        return len(self._watches)

    async def run(self) -> None:
        """Keep connected until cancelled."""
        await self._link.run()

    @contextmanager
    def watch(self, keys: Iterable[str]) -> Iterator[Watch]:
        """A watch of keys, each of which must be armed."""
        watch, watched = Watch(self._link), frozenset(keys)
        self._watches[watch] = watched
        for key in watched:
            self._by_key.setdefault(key, set()).add(watch)
        try:
            yield watch
        finally:
            del self._watches[watch]
            for key in watched:
                self._by_key[key].discard(watch)
                if not self._by_key[key]:
                    del self._by_key[key]

    def wake_all(self) -> None:
        """Wake every task."""
        for watch in list(self._watches):
            watch.tell()

    def _hear(self, keys: Sequence[bytes] | None) -> None:
        """Process changes; None if any key may have changed."""
        if keys is None:
            for watch, watched in list(self._watches.items()):
                watch.tell(watched)
            return
        for key in keys:
            name = key.decode("utf-8", "replace")
            for watch in list(self._by_key.get(name, ())):
                watch.tell([name])


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if not future.done():  # its task may have been cancelled
        future.set_result(reply)
