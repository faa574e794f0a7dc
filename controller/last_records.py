"""Remembers the last record of each version that may be cold: its contract and its rank outlive its workers.

Kept in Redis, so that a controller that starts while a version is cold knows it as well.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from math import inf
from typing import cast

from app.redis import keys
from app.redis.client import AsyncClient, ResponseError
from app.server_errors import WireError
from app.worker_record import WorkerRecord, by_queue, decode_record, encode_record

WRITTEN_AGAIN_S = 30.0


class LastRecords:
    """The last records, by queue.

    Args:
        client: Asynchronous Redis client that returns bytes.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._by_queue: dict[str, WorkerRecord] = {}
        self._looked_up: set[str] = set()
        self._written_at_s = -inf

    async def refresh(
        self, live: Iterable[WorkerRecord], queues: Collection[str]
    ) -> Collection[WorkerRecord]:
        """Remember live workers, and return the last record of each queue that ever had one.

        Args:
            live: Records of live workers in any state.
            queues: Queues of versions that may be cold; all others are forgotten.
        """
        if not queues:
            self._by_queue, self._looked_up = {}, set()
            return ()
        newest = {queue: group[0] for queue, group in by_queue(live).items() if queue in queues}
        await self._look_up([each for each in queues if each not in self._looked_up])
        self._looked_up &= set(queues)
        is_news = not newest.keys() <= self._by_queue.keys()
        self._by_queue = {queue: each for queue, each in (self._by_queue | newest).items() if queue in queues}
        now_s = time.monotonic()
        if self._by_queue and (is_news or now_s - self._written_at_s >= WRITTEN_AGAIN_S):
            await self._write()
            self._written_at_s = now_s
        return self._by_queue.values()

    async def _look_up(self, queues: list[str]) -> None:
        if not queues:
            return
        found = cast(list[bytes | None], await self._client.hmget(keys.LAST_RECORDS, queues))
        self._looked_up.update(queues)
        for queue, data in zip(queues, found, strict=True):
            if data is not None:
                try:
                    self._by_queue[queue] = decode_record(data)
                except WireError:
                    continue  # of another release; the next worker replaces it

    async def _write(self) -> None:
        try:
            await self._client.hset(
                keys.LAST_RECORDS,
                mapping={queue: encode_record(each) for queue, each in self._by_queue.items()},
            )
        except ResponseError:
            return  # a full Redis keeps none
