"""Keeps a snapshot of the pool: refreshed each heartbeat, and at once when a worker says that it changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from typing import cast

import redis.asyncio

from app import keys
from app.clock import PoolClock, to_ms
from app.errors import LedgerUnavailableError, WireError
from app.ids import IdSigner
from app.ledger import ledger_errors
from app.pool import WorkerRecord, decode_record
from app.unreadable import Unreadable
from controller.backlog import Backlogs
from controller.routing import Snapshot, build_snapshot

logger = logging.getLogger(__name__)
SWEEP_AFTER_TTLS = 20


@dataclass(frozen=True, slots=True)
class PoolView:
    """What was last read of the pool.

    Attributes:
        records: Live workers.
        numbers: Worker number by queue.
        backlog_jobs: Jobs without an outcome, by queue; queues that have some.
        oldest_at_ms: When the oldest of them was accepted, by queue; Redis's clock.
        snapshot: The same, ordered for routing.
    """

    records: tuple[WorkerRecord, ...] = ()
    numbers: dict[str, int] = field(default_factory=dict)
    backlog_jobs: dict[str, int] = field(default_factory=dict)
    oldest_at_ms: dict[str, float] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=Snapshot)


class PoolWatcher:
    """Holds the current `PoolView`.

    Args:
        client: Asynchronous Redis client that answers bytes.
        clock: Taught Redis's time by each refresh.
        backlogs: Told of each reading.
        interval_s: Seconds between two refreshes.
        worker_ttl_s: Seconds after which a silent worker is dead.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        clock: PoolClock,
        backlogs: Backlogs,
        interval_s: float,
        worker_ttl_s: float,
        unreadable: Unreadable,
    ) -> None:
        self.view = PoolView()
        self.reachable = False
        self._client = client
        self._clock = clock
        self._backlogs = backlogs
        self._unreadable = unreadable
        self._interval_s = interval_s
        self._worker_ttl_ms = worker_ttl_s * 1000
        self._signer: IdSigner | None = None
        self._secret = b""
        self._wake = asyncio.Event()

    @property
    def signer(self) -> IdSigner:
        """Gives and recognises ids.

        Raises:
            LedgerUnavailableError: Redis does not answer, or has not yet. So callers are refused at once instead of
                each waiting for a timeout of their own.
        """
        if self._signer is None or not self.reachable:
            raise LedgerUnavailableError("Redis does not answer; try again shortly", retry_after_s=1)
        return self._signer

    def refresh_soon(self) -> None:
        """Refresh now rather than at the next interval."""
        self._wake.set()

    async def run(self) -> None:
        """Refresh until cancelled. Redis being away is logged once and outlived."""
        while True:
            try:
                await self.refresh()
            except LedgerUnavailableError as error:
                if self.reachable:
                    logger.warning("%s; the pool is as last seen, refreshing each heartbeat", error.detail)
                self.reachable = False
                # What sits in the pool may be cut off without knowing, and each would cost a timeout to find out.
                await self._client.connection_pool.disconnect(inuse_connections=False)
            except WireError as error:
                self._unreadable.note("pool_entry", "", error.detail)
            except Exception:
                # A record that nobody foresaw must not end the refreshing: routing would go by this view for ever.
                logger.exception("the pool could not be read; trying again each heartbeat")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval_s)
            self._wake.clear()

    async def refresh(self) -> None:
        """Read the pool once, in two round trips.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            asked_at_s = time.monotonic()
            self._backlogs.begin_reading()
            pipe.time()
            pipe.get(keys.SECRET)
            pipe.zrange(keys.WORKERS, 0, -1, withscores=True)
            pipe.hgetall(keys.NUMBERS)
            pipe.hgetall(keys.BACKLOG)
            redis_time, secret, workers, numbers, backlog = await pipe.execute()
            self._clock.adjust(redis_time, asked_at_s)
            # By Redis's time alone: this host's clock may be minutes off.
            dead_at_ms = to_ms(*redis_time) - self._worker_ttl_ms
            worker_ids = [worker_id for worker_id, heartbeat_at_ms in workers if heartbeat_at_ms > dead_at_ms]
            secret = secret or await self._new_secret()
            if secret != self._secret:
                self._secret, self._signer = secret, IdSigner(secret)
            await self._read_workers(worker_ids, self._counts(numbers), self._counts(backlog))
        if not self.reachable:
            logger.info("Redis answers")
        self.reachable = True

    async def _new_secret(self) -> bytes:
        # Only where there is none, as Redis refuses to set it where it is full. One that has lost its data gets the
        # old one back: ids that were given since are good.
        await self._client.set(keys.SECRET, self._secret or os.urandom(32), nx=True)
        return cast(bytes, await self._client.get(keys.SECRET))

    async def _read_workers(
        self,
        worker_ids: list[bytes],
        numbers: dict[str, int],
        backlog: dict[str, int],
    ) -> None:
        backlog = {queue: jobs for queue, jobs in backlog.items() if jobs > 0}
        pipe = self._client.pipeline(transaction=False)
        names = [worker_id.decode("utf-8", "replace") for worker_id in worker_ids] or [""]
        pipe.mget([keys.worker(name) for name in names])
        # Workers that were killed never take themselves off the list.
        pipe.zremrangebyscore(
            keys.WORKERS, "-inf", self._clock.now_ms() - SWEEP_AFTER_TTLS * self._worker_ttl_ms
        )
        for queue in backlog:
            pipe.zrange(keys.pending(queue), 0, 0, withscores=True)
        raw, _, *oldest = await pipe.execute()
        records = tuple(record for record in map(self._readable, names, raw) if record)
        waits_ms = self._backlogs.refresh(records, backlog)
        self.view = PoolView(
            records=records,
            numbers=numbers,
            backlog_jobs=backlog,
            oldest_at_ms={
                queue: float(first[0][1]) for queue, first in zip(backlog, oldest, strict=True) if first
            },
            snapshot=build_snapshot(records, numbers, waits_ms),
        )

    def _counts(self, raw: dict[bytes, bytes]) -> dict[str, int]:
        """A hash of counts by queue, less what is none."""
        found = {}
        for name, value in raw.items():
            queue = name.decode("utf-8", "replace")
            try:
                if not keys.is_queue(queue):
                    raise ValueError("not the name of a queue")
                found[queue] = int(value)
            except ValueError as error:
                self._unreadable.note("pool_entry", queue, error)
        return found

    def _readable(self, worker_id: str, data: bytes | None) -> WorkerRecord | None:
        if data is None:
            return None
        try:
            return decode_record(data)
        except WireError as error:
            self._unreadable.note("worker_record", worker_id, f"left out: {error.detail}")
            return None
