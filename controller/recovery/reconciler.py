"""The reconciler: brings accepted jobs to an outcome after crashes. It resends lost batches and closes overdue ones.

One controller of the pool at a time runs it, with a lease in Redis. Every operation is idempotent: a batch that has
an outcome, or that another worker has claimed since, is not changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from app.ledger import ids
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.wakeup_message import WakeUpMessages, unannounced
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import Call, load, run
from app.server_errors import LedgerUnavailableError, WireError
from app.settings import HEARTBEATS_TO_LIVE
from app.unreadable import Unreadable
from app.worker_record import decode_record
from controller.pool_watcher import PoolWatcher

logger = logging.getLogger(__name__)

OLDEST_PER_PASS = 128
OVERDUE_PER_PASS = 256
UNCLAIMED_GRACE_MS = 2000
# Upper bound of the difference between two readings of Redis's clock, by two controllers or before and after an
# adjustment. Batches sent within that time may be queued in another order than their ids suggest.
CLOCKS_APART_MS = 1000
# Upper bound of a local clock's lead over Redis's: after it, no batch can be cancelled or claimed any more.
OVERDUE_GRACE_MS = 1000


@dataclass(frozen=True, slots=True)
class QueueView:
    """The state of a queue in one pass.

    Attributes:
        running: Worker id by batch.
        oldest: The batches that have waited longest, with their acceptance times (ms).
        next_message: The Celery message that is next in the queue, or None.
        overdue: Batches whose last deadline has passed.
    """

    queue: str
    running: dict[str, str]
    oldest: list[tuple[str, int]]
    next_message: bytes | None
    overdue: list[str]


class Reconciler:
    """The background task.

    Args:
        controller_id: Holder of the lease.
        client: Asynchronous Redis client that returns bytes.
        template: Message template of `app.ledger.wakeup_message.write_template`.
        watcher: Provides Redis's clock.
        interval_s: Seconds between two passes.

    Attributes:
        holds_lease: Whether this controller is the one of the pool that reconciles.
    """

    def __init__(
        self,
        controller_id: str,
        client: AsyncClient,
        ledger: ControllerLedger,
        template: bytes,
        watcher: PoolWatcher,
        unreadable: Unreadable,
        *,
        interval_s: float,
    ) -> None:
        self.holds_lease = False
        self._controller_id = controller_id
        self._client = client
        self._ledger = ledger
        self._template = template
        self._clock = watcher.clock
        self._interval_s = interval_s
        self._unreadable = unreadable
        # Found in one pass, repaired in the next: data that was only in transit has arrived by then.
        self._suspects: set[str] = set()
        # While Redis was unreachable there were no heartbeats: only a worker that stays silent afterwards is dead.
        self._answers_since_s: float | None = None

    async def run(self) -> None:
        """Run passes until cancelled. An unreachable Redis is retried."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                self.holds_lease = await self._takes_lease()
                self._answers_since_s = self._answers_since_s or time.monotonic()
                if self.holds_lease:
                    await self._pass()
            except LedgerUnavailableError:
                self.holds_lease = False
                self._suspects.clear()
                self._answers_since_s = None
            except Exception:
                logger.exception("a reconciler pass failed; retrying in the next pass")

    async def _takes_lease(self) -> bool:
        with ledger_errors():
            lease_ms = int(3000 * self._interval_s)
            call = Call(load("acquire_lease"), [keys.RECONCILER_LEASE], [self._controller_id, lease_ms])
            return bool(await run(self._client, call))

    async def _pass(self) -> None:
        with ledger_errors():
            # Queues without a backlog, too: a batch whose jobs were all cancelled is not in the backlog.
            queues = cast(list[bytes], await self._client.hkeys(keys.BACKLOG))
        suspects: set[str] = set()
        for queue in [name.decode("utf-8", "replace") for name in queues]:
            try:
                suspects |= await self._pass_queue(queue)
            except WireError as error:  # the other queues are still processed
                self._unreadable.note("pool_entry", queue, error.detail)
        self._suspects = suspects

    async def _pass_queue(self, queue: str) -> set[str]:
        """Repair one queue; return the batches that may be lost."""
        with ledger_errors():
            view = await self._read(queue)
            suspects = await self._send_again(view, await self._silent(view))
            for batch_id in view.overdue:
                if batch_id not in view.running:
                    await self._close(batch_id, queue)
            return suspects

    async def _read(self, queue: str) -> QueueView:
        pipe = self._client.pipeline(transaction=False)
        pipe.hgetall(keys.running(queue))
        pipe.zrange(keys.pending(queue), 0, OLDEST_PER_PASS - 1, withscores=True)
        pipe.lindex(queue, -1)
        overdue_ms = self._clock.now_ms() - OVERDUE_GRACE_MS
        pipe.zrangebyscore(keys.deadlines(queue), "-inf", overdue_ms, start=0, num=OVERDUE_PER_PASS)
        running, oldest, next_message, overdue = await pipe.execute()
        nonsense = {each for each in (*running, *dict(oldest), *overdue) if not _batch_id(each)}
        if nonsense:
            await self._drop(queue, nonsense)
        return QueueView(
            queue=queue,
            running={
                _batch_id(batch): owner.decode("utf-8", "replace")
                for batch, owner in running.items()
                if batch not in nonsense
            },
            oldest=[(_batch_id(batch), int(score)) for batch, score in oldest if batch not in nonsense],
            next_message=next_message,
            overdue=[_batch_id(batch) for batch in overdue if batch not in nonsense],
        )

    async def _drop(self, queue: str, nonsense: set[bytes]) -> None:
        """Remove entries that are not batch ids from a queue's indexes, where they would precede real batches."""
        for entry in nonsense:
            self._unreadable.note("pool_entry", queue, f"{entry[:32]!r} is not a batch id; dropped")
        pipe = self._client.pipeline(transaction=False)
        pipe.zrem(keys.pending(queue), *nonsense)
        pipe.zrem(keys.deadlines(queue), *nonsense)
        pipe.hdel(keys.running(queue), *nonsense)
        await pipe.execute()

    async def _silent(self, view: QueueView) -> dict[str, bool]:
        """Running batches that their owner does not report; True if the owner is dead."""
        if not view.running:
            return {}
        owners = sorted(set(view.running.values()))
        raw = cast(list[bytes | None], await self._client.mget([keys.worker(owner) for owner in owners]))
        running: dict[str, str | None] = {}
        for owner, data in zip(owners, raw, strict=True):
            # The owner is alive and of a newer version: its batches are not changed.
            with suppress(WireError):
                running[owner] = decode_record(data).running_batch if data else None
        if time.monotonic() - (self._answers_since_s or 0) < HEARTBEATS_TO_LIVE * self._interval_s:
            running = {owner: batch for owner, batch in running.items() if batch is not None}
        return {
            batch: running[owner] is None
            for batch, owner in view.running.items()
            if owner in running and running[owner] != batch
        }

    async def _send_again(self, view: QueueView, silent: dict[str, bool]) -> set[str]:
        """Resend the lost batches; return the batches that may be lost."""
        suspects = {batch for batch, dead in silent.items() if not dead} | self._unannounced(view)
        lost = [batch for batch, dead in silent.items() if dead]
        lost += [batch for batch in suspects if batch in self._suspects]
        # The last message sent is taken first, so the oldest batch is sent last.
        for batch in sorted(lost, key=ids.accepted_at_ms, reverse=True):
            await self._send_one_again(batch, view.queue, view.running.get(batch, ""))
        return suspects - set(lost)

    async def _send_one_again(self, batch_id: str, queue: str, owner: str) -> None:
        message = WakeUpMessages(self._template, queue).write(batch_id)
        try:
            with ledger_errors():
                if await self._ledger.requeue(batch_id, queue, owner, message):
                    with_owner = f" with worker {owner}" if owner else ""
                    told = {"batch_id": batch_id}
                    logger.warning("batch %s was lost%s; requeued", batch_id, with_owner, extra=told)
                else:
                    await self._ledger.forget(batch_id, queue)
        except WireError as error:
            await self._close_unreadable(batch_id, queue, error)

    def _unannounced(self, view: QueueView) -> set[str]:
        """Unclaimed batches that the first-in-first-out queue should have delivered by now."""
        unclaimed = [entry for entry in view.oldest if entry[0] not in view.running]
        before_ms = self._clock.now_ms() - UNCLAIMED_GRACE_MS
        return set(unannounced(unclaimed, view.next_message, before_ms, CLOCKS_APART_MS))

    async def _close(self, batch_id: str, queue: str) -> None:
        now_ms = self._clock.now_ms()
        try:
            if await self._ledger.close_overdue(batch_id, queue, now_ms):
                told = {"batch_id": batch_id}
                logger.warning("batch %s expired: no worker claimed it in time", batch_id, extra=told)
        except WireError as error:
            await self._close_unreadable(batch_id, queue, error)

    async def _close_unreadable(self, batch_id: str, queue: str, error: WireError) -> None:
        self._unreadable.note("batch", batch_id, f"its jobs fail: {error.detail}")
        await self._ledger.close_unreadable(batch_id, queue, self._clock.now_ms())


def _batch_id(raw: bytes) -> str:
    """The batch id in an index entry; empty if it is not a batch id."""
    batch_id = raw.decode("ascii", "replace")
    return batch_id if ids.is_well_formed(batch_id) else ""
