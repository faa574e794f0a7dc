"""How a batch leaves the ledger's indexes, and how one whose record cannot be read is closed all the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.ledger import ids, wire
from app.ledger.wire import CANCELLED, BatchHead, BatchOutcome, JobEntry, JobOutcome
from app.redis import keys

UNKNOWN_POLICY = "unknown"
UNREADABLE = JobOutcome(
    "failed",
    error_code="record_unreadable",
    error_detail="what Redis holds of this job cannot be read any more; submit it again",
)

# Part of a script, KEYS batch pending deadlines backlog running open, ARGV batch_id queue: nothing of the batch is
# open any more. Not -open, which is '-0' where every job was cancelled.
CLOSE_COUNT = """
redis.call('HINCRBY', KEYS[4], ARGV[2], 0 - (redis.call('HGET', KEYS[6], ARGV[1]) or 0))
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
"""

# KEYS as above; ARGV batch_id queue worker_id head out ttl_ms. Puts a head that can be read in place of the record,
# with an outcome. A batch that has an outcome, or that another worker holds, is left alone. Nobody is told: who was
# to be told stood in the head; controllers look after what they have not heard of.
CLOSE_UNREADABLE = (
    """
local owner = redis.call('HGET', KEYS[5], ARGV[1])
if owner and owner ~= ARGV[3] then return 0 end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' or kind == 'hash' and redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'head', ARGV[4], 'out', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('HDEL', KEYS[5], ARGV[1])
"""
    + CLOSE_COUNT
    + "return 1"
)


def finish_keys(batch_id: str, queue: str) -> list[str]:
    """Keys that the end of a batch touches."""
    return [
        keys.batch(batch_id),
        keys.pending(queue),
        keys.deadlines(queue),
        keys.BACKLOG,
        keys.running(queue),
        keys.open_jobs(queue),
    ]


def unreadable_args(
    batch_id: str,
    queue: str,
    number: int,
    worker_id: str,
    fields: Iterable[bytes],
    now_ms: float,
    ttl_ms: int,
) -> list[str | bytes | int]:
    """Arguments of `CLOSE_UNREADABLE`.

    Args:
        number: Worker number of the queue.
        worker_id: Who may hold the batch.
        fields: Names of the record's fields: jobs that were cancelled stay so.
    """
    head = substitute_head(batch_id, queue, number)
    cancelled = {name for name in fields if name.startswith(b"c:")}
    jobs = [CANCELLED if f"c:{i}".encode() in cancelled else UNREADABLE for i in range(len(head.jobs))]
    outcome = closed(jobs, now_ms, worker_id)
    return [batch_id, queue, worker_id, wire.encode(head), wire.encode(outcome), ttl_ms]


def substitute_head(batch_id: str, queue: str, number: int) -> BatchHead:
    """A head made of what a batch's id and queue tell."""
    name, version = keys.model_of(queue)
    accepted_at_ms = ids.accepted_at_ms(batch_id)
    job = JobEntry(0, accepted_at_ms, accepted_at_ms, UNKNOWN_POLICY, forced=False)
    return BatchHead(
        queue=queue,
        worker=number,
        reply_to="",
        model_name=name,
        model_version=version,
        val_accuracy=None,
        dtype="",
        sample_shape=(),
        jobs=[job] * ids.n_jobs(batch_id),
    )


def overdue_outcome(head: BatchHead, fields: Mapping[bytes, bytes], now_ms: float) -> BatchOutcome:
    """The outcome of a batch that no worker took in time."""
    jobs = [CANCELLED if f"c:{i}".encode() in fields else wire.EXPIRED for i in range(len(head.jobs))]
    return closed(jobs, now_ms)


def closed(jobs: list[JobOutcome], now_ms: float, worker_id: str = "") -> BatchOutcome:
    """The outcome of a batch that was not run."""
    return BatchOutcome(
        worker_id=worker_id,
        started_at_ms=now_ms,
        finished_at_ms=now_ms,
        inference_ms=0,
        n_samples=0,
        jobs=jobs,
    )
