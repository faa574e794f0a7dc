"""The replay buffer: a second copy of accepted data, kept until Redis has certainly written it to disk.

With `appendfsync everysec` Redis confirms writes before they are on disk. So a controller keeps confirmed data for
`KEEP_S` more seconds, and writes it again if Redis returns as another run or without data. Behind Sentinel that is
also another primary, which may lack the last writes, and the time is `KEEP_BEHIND_SENTINEL_S`. This covers cancels and
batches, with their samples or, after completion, with their outcome. Data that Redis still has is not changed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from app.clock import PoolClock
from app.ledger.commands import Accept, RestoreOutcome
from app.ledger.ids import JobRef
from app.ledger.replay import Replay
from app.ledger.wire import BatchHead
from app.server_errors import LedgerUnavailableError, WireError
from controller.events import Accepted, Completed

logger = logging.getLogger(__name__)

# During an fsync, Redis delays a write for at most two seconds (`flushAppendOnlyFile`), and it writes before it
# answers. So the answer to a command sent this much later proves the write. Redis counts in whole seconds, hence the
# third second.
KEEP_S = 3.0
# A failover loses the confirmed writes that no replica has: with `min-replicas-max-lag 5`, up to 6 s.
KEEP_BEHIND_SENTINEL_S = 10.0
# 20,000 jobs of 784 float32 without an outcome: four seconds at 5,000 jobs/s while no worker runs.
LIMIT_BYTES = 64 * 2**20
OVERHEAD_BYTES = 2048  # memory per batch besides its samples, head and outcome
QUARANTINED = "job_quarantined"


@dataclass(eq=False, slots=True)
class Copy:
    """The command that restores a batch: the accepting call or, if its outcome is known, the call that writes it.

    Attributes:
        kept_at_s: When Redis confirmed it, `time.monotonic()`.
    """

    call: Accept | RestoreOutcome
    kept_at_s: float
    size_bytes: int


class ReplayBuffer:
    """The replay buffer.

    Args:
        replay: Writes the copies again.
        retention_s: Retention of outcomes in seconds.
        behind_sentinel: Whether a replica may take Redis's place.

    Attributes:
        run: The run of Redis that has all copied data.
    """

    def __init__(
        self, replay: Replay, clock: PoolClock, retention_s: float, *, behind_sentinel: bool = False
    ) -> None:
        self.run = ""
        self._replay = replay
        self._clock = clock
        self._retention_s = retention_s
        self._behind_sentinel = behind_sentinel
        self._copies: dict[str, Copy] = {}  # oldest first, except for restored ones
        self._size_bytes = 0
        self._cancels: dict[JobRef, tuple[str, float]] = {}  # queue, and time of the confirmation
        self._cancels_due: set[JobRef] = set()
        self._answered_at_s = 0.0

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._copies

    @property
    def keep_s(self) -> float:
        """Seconds for which a confirmed copy is kept."""
        return KEEP_BEHIND_SENTINEL_S if self._behind_sentinel else KEEP_S

    def accepted(self, event: Accepted) -> None:
        """Copy a batch that was just accepted."""
        self._keep(event.accept)

    def completed(self, event: Completed) -> None:
        """Replace the samples of a batch by its outcome; drop the copy if all callers have received their outcomes."""
        copy = self._remove(event.batch_id)
        if copy is None or not isinstance(copy.call, Accept):
            return
        accept = copy.call
        if event.all_received and not accept.batch.once:
            return
        if any(job.error_code == QUARANTINED for job in event.outcome.jobs):
            # The quarantine needs the samples, too: the batch must reach that outcome again.
            self._keep(accept)
            return
        restore = RestoreOutcome.of(accept, event.outcome)
        self._add(event.batch_id, restore, len(restore.head) + len(restore.outcome))

    def cancelled(self, ref: JobRef, head: BatchHead) -> None:
        """Copy a cancel that was just confirmed."""
        self._cancels[ref] = head.queue, time.monotonic()

    async def check_run(self, run: str, asked_at_s: float) -> None:
        """Process an answer of Redis; to be called each heartbeat, and more often after Redis was unreachable.

        Args:
            run: Identifies this run of Redis together with its data.
            asked_at_s: When the answered command was sent, `time.monotonic()`.
        """
        try:
            if run != self.run:
                await self._write_all_again()
                self.run = run
            await self._cancel_again()
        except LedgerUnavailableError as error:
            logger.warning("%s; the replay of lost data is pending", error.detail)
        else:
            self._answered_at_s = asked_at_s
            self._forget(asked_at_s - self.keep_s)

    async def _write_all_again(self) -> None:
        n_lost, batch_ids = 0, list(self._copies)
        for batch_id in batch_ids:
            copy = self._copies.get(batch_id)
            if copy is None:
                continue
            try:
                n_lost += await self._write_again(copy)
            except WireError as error:
                told = {"batch_id": batch_id}
                logger.warning("batch %s cannot be replayed: %s", batch_id, error.detail, extra=told)
            copy.kept_at_s = time.monotonic()  # this run may lose it as well
        for ref, (queue, _) in self._cancels.items():
            self._cancels[ref] = queue, time.monotonic()
        self._cancels_due = set(self._cancels)
        if n_lost:
            logger.warning("Redis lost %d of the %d newest batches; replayed them", n_lost, len(batch_ids))

    async def _write_again(self, copy: Copy) -> bool:
        """Write a batch again, unless its retention is over; True if Redis had lost it."""
        now_ms, retention_ms = self._clock.now_ms(), self._retention_s * 1000
        if isinstance(copy.call, RestoreOutcome):
            ttl_ms = int(copy.call.finished_at_ms + retention_ms - now_ms)
            return ttl_ms > 0 and await self._replay.outcome(copy.call, ttl_ms)
        # Redis has been reachable for a whole retention: the outcome may have been read and have expired.
        may_be_over = self._answered_at_s - copy.kept_at_s >= self._retention_s
        is_in_time = now_ms < copy.call.last_deadline_ms + retention_ms
        return is_in_time and not may_be_over and await self._replay.batch(copy.call)

    async def _cancel_again(self) -> None:
        due = {ref: self._cancels[ref] for ref in self._cancels_due}
        for ref, (queue, _) in due.items():
            try:
                answer = await self._replay.cancel(ref, queue)
            except WireError as error:
                logger.warning("a cancel of batch %s cannot be replayed: %s", ref.batch_id, error.detail)
                answer = "finished"
            # Unknown job: the controller that accepted it will write it again.
            if answer != "unknown":
                self._cancels_due.discard(ref)

    def _keep(self, accept: Accept) -> None:
        self._add(accept.batch.batch_id, accept, len(accept.batch.data) + len(accept.head))

    def _add(self, batch_id: str, call: Accept | RestoreOutcome, n_bytes: int) -> None:
        size_bytes = OVERHEAD_BYTES + n_bytes
        self._copies[batch_id] = Copy(call, time.monotonic(), size_bytes)
        self._size_bytes += size_bytes
        while self._size_bytes > LIMIT_BYTES and len(self._copies) > 1:
            self._remove(next(iter(self._copies)))

    def _remove(self, batch_id: str) -> Copy | None:
        copy = self._copies.pop(batch_id, None)
        if copy:
            self._size_bytes -= copy.size_bytes
        return copy

    def _forget(self, before_s: float) -> None:
        """Drop the copies that Redis confirmed before `before_s`: they are on disk."""
        while self._copies:
            batch_id, oldest = next(iter(self._copies.items()))
            if oldest.kept_at_s > before_s:
                break
            self._remove(batch_id)
        if self._cancels:
            self._cancels = {ref: each for ref, each in self._cancels.items() if each[1] > before_s}
            self._cancels_due &= self._cancels.keys()
