"""The Lua scripts of batches, each rendered by one typed function. No other file orders their keys and arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from operator import attrgetter
from typing import Any, NamedTuple

from app.ledger import wire
from app.ledger.closing import closed_head, unreadable_outcome
from app.ledger.ids import JobRef
from app.ledger.webhook_list import ENDED, FIRST_LOOK_MS, entries
from app.ledger.wire import BatchHead, BatchOutcome, JobOutcome
from app.redis import keys
from app.redis.link import RedisLink
from app.redis.script import Call, LargeFields, Value, load

QUARANTINE_LIMIT = 10_000
SAMPLES = "data"  # the field of a record; it has the last piece of large samples
PIECE = "p:"  # and an index: the fields of the pieces before it
# Largest piece. Redis copies a value several times and serves nobody meanwhile; larger ones take new memory each time.
PIECE_BYTES = 2**18
# Size of a batch's samples above which Lua costs more than a transaction and a round trip.
LARGE_SAMPLES_BYTES = 16 * 2**10
_deadline_ms = attrgetter("deadline_ms")


class OnceKey(NamedTuple):
    """The idempotency key of a job that will be accepted.

    Attributes:
        name: Redis key.
        fence: Its value while its POST request holds it.
        value: Its value after the job is accepted.
    """

    name: str
    fence: str
    value: str


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch about to be accepted.

    Attributes:
        data: Samples of all jobs, C order, little-endian.
        message: Celery message that wakes a worker of the queue.
        once: The idempotency keys of its jobs.
    """

    batch_id: str
    head: BatchHead
    data: bytes
    message: bytes
    accepted_at_ms: float
    once: Sequence[OnceKey] = ()


@dataclass(frozen=True, slots=True)
class Accept:
    """The accepting command of a batch, rendered once. It is sent, and kept while Redis may still lose the batch.

    Attributes:
        head: The encoded batch head.
        last_deadline_ms: When its last job expires, Redis's clock.
        retention_ms: Retention of outcomes in milliseconds.
        ttl_ms: Time to live of the record in milliseconds.
    """

    batch: NewBatch
    head: bytes
    last_deadline_ms: float
    retention_ms: int
    ttl_ms: int

    @classmethod
    def of(cls, batch: NewBatch, retention_ms: int) -> Accept:
        """Render the command for a batch.

        Args:
            retention_ms: Retention of outcomes in milliseconds.
        """
        deadline_ms = max(map(_deadline_ms, batch.head.jobs))
        ttl_ms = int(deadline_ms - batch.accepted_at_ms) + retention_ms
        return cls(batch, wire.encode(batch.head), deadline_ms, retention_ms, ttl_ms)

    def send(self, link: RedisLink, done: Callable[..., None], *args: Any) -> None:
        """Accept the batch; refused if Redis is full or if a POST request has lost its idempotency key.

        `done` is called with `args` and the reply of accept.lua, or the `RedisError`.
        """
        if self.batch.head.callbacks:
            words = [word for job_id, at_ms in self.webhooks().items() for word in (at_ms, job_id)]
            link.call(_ignored, "ZADD", keys.WEBHOOKS, *words)
        samples = self.batch.data
        if len(samples) < LARGE_SAMPLES_BYTES:
            link.run_script(self._call("accept", samples), done, *args)
            return
        large = LargeFields(keys.batch(self.batch.batch_id), _pieces(samples), self.ttl_ms)
        link.store_and_run(large, self._call("accept_after_samples", b""), done, *args)

    def webhooks(self) -> dict[str, int]:
        """The entries of its jobs in the list of webhooks."""
        batch = self.batch
        return entries(batch.batch_id, batch.head.callbacks, batch.accepted_at_ms + FIRST_LOOK_MS)

    def call_again(self) -> Call:
        """Accept a lost batch again, even if Redis is full."""
        return self._call("accept_again", self.batch.data)

    def call_resend(self, old: JobRef, new_job_id: str, *, again: bool) -> Call:
        """Accept a quarantined job as a new one; its samples come from its old record."""
        own = self._call("resend", b"")
        own.keys.append(keys.batch(old.batch_id))
        own.args.extend((old.index, new_job_id, int(again)))
        return own

    def _call(self, script: str, data: bytes) -> Call:
        batch = self.batch
        batch_id, head, once = batch.batch_id, batch.head, batch.once
        queue = head.queue
        names = [
            keys.batch(batch_id),
            keys.pending(queue),
            keys.deadlines(queue),
            keys.BACKLOG,
            queue,
            keys.open_jobs(queue),
        ]
        args: list[Value] = [
            batch_id,
            queue,
            self.head,
            data,
            len(head.jobs),
            batch.accepted_at_ms,
            self.last_deadline_ms,
            self.ttl_ms,
            batch.message,
            self.retention_ms,
        ]
        if once:
            names += [each.name for each in once]
            args += [each.value for each in once]
            args += [each.fence for each in once]
        return Call(load(script), names, args)


@dataclass(frozen=True, slots=True)
class RestoreOutcome:
    """The command that writes an announced outcome again after Redis lost it.

    Attributes:
        head: The encoded batch head.
        outcome: The encoded batch outcome.
        finished_at_ms: When it was first written, Redis's clock.
        once: The idempotency keys of its jobs.
        webhooks: The entries of its jobs in the list of webhooks.
    """

    batch_id: str
    queue: str
    head: bytes
    outcome: bytes
    finished_at_ms: float
    once: Sequence[OnceKey]
    webhooks: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, accept: Accept, outcome: BatchOutcome) -> RestoreOutcome:
        """Render the command for the outcome of an accepted batch."""
        batch = accept.batch
        return cls(
            batch.batch_id,
            batch.head.queue,
            accept.head,
            wire.encode(outcome),
            outcome.finished_at_ms,
            batch.once,
            entries(batch.batch_id, batch.head.callbacks, ENDED),
        )

    def call(self, ttl_ms: int) -> Call:
        """Write the outcome with this time to live."""
        names = [*_batch_keys(self.batch_id, self.queue), *[each.name for each in self.once]]
        args: list[Value] = [self.batch_id, self.queue, self.head, self.outcome, ttl_ms]
        args += [each.value for each in self.once]
        return Call(load("restore_outcome"), names, args)


def claim(batch_id: str, queue: str, worker_id: str) -> Call:
    """Claim a batch whose message Celery delivered."""
    return Call(load("claim"), [keys.batch(batch_id), keys.running(queue)], [batch_id, worker_id])


def take(queue: str, worker_id: str) -> Call:
    """Claim the batch whose message is next on the queue."""
    return Call(load("take"), [keys.running(queue), queue], [worker_id])


def release(batch_id: str, queue: str, worker_id: str) -> Call:
    """Release the claim on a batch without writing an outcome."""
    return Call(load("release"), [keys.batch(batch_id), keys.running(queue)], [batch_id, worker_id])


def progress(
    batch_id: str, queue: str, worker_id: str, next_index: int | None, done: tuple[int, JobOutcome] | None
) -> Call:
    """Record which job runs alone next, and the outcome of the previous one."""
    done_args: tuple[Value, Value] = (done[0], wire.encode(done[1])) if done else ("", "")
    return Call(
        load("progress"),
        [keys.batch(batch_id), keys.running(queue)],
        [batch_id, worker_id, "" if next_index is None else next_index, *done_args],
    )


def keep_outcome(batch_id: str, index: int, outcome: JobOutcome) -> Call:
    """Record the outcome of one job of an open batch, unless it already has one."""
    return Call(load("keep_outcome"), [keys.batch(batch_id)], [index, wire.encode(outcome)])


def finish(
    batch_id: str,
    head: BatchHead,
    worker_id: str,
    outcome: BatchOutcome,
    retention_ms: int,
    quarantined: Mapping[int, bytes] | None = None,
) -> Call:
    """Write the outcome of a batch; `worker_id` is '' for an unclaimed batch."""
    return _finish("finish", batch_id, head, worker_id, outcome, retention_ms, quarantined)


def finish_and_take(
    batch_id: str,
    head: BatchHead,
    worker_id: str,
    outcome: BatchOutcome,
    retention_ms: int,
    quarantined: Mapping[int, bytes] | None = None,
    *,
    take: bool,
) -> Call:
    """Write the outcome of a batch and optionally take the next one."""
    call = _finish("finish_and_take", batch_id, head, worker_id, outcome, retention_ms, quarantined)
    if take:
        call.keys.append(head.queue)
    return call


def cancel(ref: JobRef, head: BatchHead) -> Call:
    """Cancel a job that no worker has claimed."""
    args: list[Value] = [ref.batch_id, head.queue, ref.index, head.jobs[ref.index].deadline_ms]
    return Call(load("cancel"), _cancel_keys(ref, head.queue), args)


def cancel_again(ref: JobRef, queue: str) -> Call:
    """Write a confirmed cancel again after Redis lost it."""
    return Call(load("cancel_again"), _cancel_keys(ref, queue), [ref.batch_id, queue, ref.index])


def requeue(batch_id: str, queue: str, worker_id: str, message: bytes) -> Call:
    """Revoke a worker's claim ('' for an unclaimed batch) and send the batch again."""
    names = [keys.batch(batch_id), keys.running(queue), queue]
    return Call(load("requeue"), names, [batch_id, worker_id, message])


def requeue_from_dead(batch_id: str, queue: str, worker_id: str, message: bytes) -> Call:
    """The same as `requeue`, unless the worker is alive."""
    names = [keys.batch(batch_id), keys.running(queue), queue, keys.worker(worker_id)]
    return Call(load("requeue_from_dead"), names, [batch_id, worker_id, message])


def reroute(batch_id: str, queue: str, old: bytes, new: BatchHead, message: bytes) -> Call:
    """Move an unclaimed batch to the queue of its new head.

    Args:
        old: The encoded head that was read; the batch stays if it has another one now.
    """
    to = new.queue
    other = [to, keys.pending(to), keys.deadlines(to), keys.open_jobs(to), keys.running(to)]
    args: list[Value] = [batch_id, queue, old, wire.encode(new), message]
    return Call(load("reroute"), [*_batch_keys(batch_id, queue), *other], args)


def forget(batch_id: str, queue: str) -> Call:
    """Remove a batch without a record from the indexes."""
    return Call(load("forget"), _batch_keys(batch_id, queue), [batch_id, queue])


def close_finished(batch_id: str, queue: str) -> Call:
    """Remove a batch with an outcome from the indexes."""
    return Call(load("close_finished"), _batch_keys(batch_id, queue), [batch_id, queue])


def close_unreadable(
    batch_id: str,
    queue: str,
    number: int,
    worker_id: str,
    fields: Iterable[bytes],
    now_ms: float,
    ttl_ms: int,
) -> Call:
    """Replace an unreadable record by a readable head and outcome.

    Args:
        number: Worker number of the queue.
        worker_id: The worker that may hold the batch.
        fields: Names of the record's fields: cancelled jobs stay cancelled.
    """
    head = closed_head(batch_id, queue, number)
    outcome = unreadable_outcome(head, fields, now_ms, worker_id)
    args: list[Value] = [batch_id, queue, worker_id, wire.encode(head), wire.encode(outcome), ttl_ms]
    return Call(load("close_unreadable"), _batch_keys(batch_id, queue), args)


def list_again(
    batch_id: str, queue: str, accepted_at_ms: float, last_deadline_ms: float, n_jobs: int
) -> Call:
    """Add an open batch to the indexes from which it is missing."""
    args: list[Value] = [batch_id, queue, accepted_at_ms, last_deadline_ms, n_jobs]
    return Call(load("list_again"), _batch_keys(batch_id, queue), args)


def _pieces(samples: bytes) -> list[tuple[str, bytes]]:
    """Large samples as fields of about equal size, so that none is small enough for Lua."""
    n_pieces = ceil(len(samples) / PIECE_BYTES)
    size = ceil(len(samples) / n_pieces)
    names = [*(f"{PIECE}{index}" for index in range(n_pieces - 1)), SAMPLES]
    return [(name, samples[index * size : (index + 1) * size]) for index, name in enumerate(names)]


def _ignored(_: object) -> None:
    """The reply to a command whose effect is repeated later."""


def _batch_keys(batch_id: str, queue: str) -> list[str]:
    """Keys that change when a batch ends."""
    return [
        keys.batch(batch_id),
        keys.pending(queue),
        keys.deadlines(queue),
        keys.BACKLOG,
        keys.running(queue),
        keys.open_jobs(queue),
    ]


def _finish(
    script: str,
    batch_id: str,
    head: BatchHead,
    worker_id: str,
    outcome: BatchOutcome,
    retention_ms: int,
    quarantined: Mapping[int, bytes] | None,
) -> Call:
    names = [*_batch_keys(batch_id, head.queue), keys.QUARANTINE]
    channel = keys.reply_channel(head.reply_to)
    args: list[Value] = [batch_id, head.queue, worker_id, wire.encode(outcome), retention_ms, channel]
    args.append(QUARANTINE_LIMIT)
    if quarantined:
        for index, samples in quarantined.items():
            args += [index, samples]
    return Call(load(script), names, args)


def _cancel_keys(ref: JobRef, queue: str) -> list[str]:
    return [keys.batch(ref.batch_id), keys.running(queue), keys.BACKLOG, keys.open_jobs(queue)]
