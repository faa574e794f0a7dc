"""The job ledger: the truth about every accepted job. The Celery message is only the wake-up.

A batch is one hash, `modelyard:batch:<batch>`:

| field | value | from | until |
| --- | --- | --- | --- |
| `head` | `BatchHead`, msgpack | accept | the record expires |
| `data` | all samples, C order, little-endian | accept | finish |
| `open` | jobs without an outcome | accept | finish |
| `c:<index>` | the job is cancelled | cancel | the record expires |
| `by` | id of the worker that claimed it | claim | finish or requeue |
| `attempts` | claims so far | claim | the record expires |
| `at` | job that runs alone now, after a worker died with the batch | progress | claim or finish |
| `x:<index>` | times that a worker died with this job alone | claim | the record expires |
| `o:<index>` | `JobOutcome` of a job that ran alone, msgpack | progress | the record expires |
| `out` | `BatchOutcome`, msgpack | finish | the record expires |

Each change is one Lua script, so that it happens whole or not at all, in one round trip. What can be derived
is not stored: a job that nobody claimed by its deadline *is* expired, whoever looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from app import ids, keys, wire
from app.clock import to_ms
from app.errors import (
    ConfigurationError,
    JobNotCancellableError,
    LedgerUnavailableError,
    UnknownJobError,
    WireError,
)
from app.ids import JobRef
from app.settings import Settings
from app.wire import BatchHead, BatchOutcome, JobOutcome, Status

# KEYS batch pending deadlines backlog queue once…
# ARGV batch_id queue head data n_jobs accepted_at_ms last_deadline_ms ttl_ms message once_ttl_ms once_value…
_ACCEPT = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'head', ARGV[3], 'data', ARGV[4], 'open', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[7], ARGV[1])
redis.call('HINCRBY', KEYS[4], ARGV[2], ARGV[5])
redis.call('LPUSH', KEYS[5], ARGV[9])
for i = 6, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 5], 'PX', ARGV[10]) end
return 1
"""

# KEYS batch running; ARGV batch_id worker_id. Answers the fields and, last, the time. A batch that another worker
# holds is left to it: if that worker is dead, a controller takes the claim away first.
_CLAIM = """
local owner = redis.call('HGET', KEYS[2], ARGV[1])
if owner and owner ~= ARGV[2] then return false end
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return false end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[1], 'by', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'attempts', 1)
local at = redis.call('HGET', KEYS[1], 'at')
if at then
  redis.call('HINCRBY', KEYS[1], 'x:' .. at, 1)
  redis.call('HDEL', KEYS[1], 'at')
end
local answer, time = redis.call('HGETALL', KEYS[1]), redis.call('TIME')
answer[#answer + 1], answer[#answer + 2] = time[1], time[2]
return answer
"""

# KEYS batch running; ARGV batch_id worker_id. Lets go of a batch without an outcome.
_RELEASE = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], 'by')
return 1
"""

# KEYS batch running; ARGV batch_id worker_id next_index done_index done_outcome (both '' before the first)
_PROGRESS = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'o:' .. ARGV[4], ARGV[5]) end
redis.call('HSET', KEYS[1], 'at', ARGV[3])
return 1
"""

# KEYS batch pending deadlines backlog running; ARGV batch_id queue worker_id out ttl_ms channel.
# Only the holder of the claim may write; worker_id '' writes for a batch that nobody holds. A batch whose record
# is gone stays in the indexes: `forget` takes it out together with its jobs in the backlog.
_FINISH = """
if (redis.call('HGET', KEYS[5], ARGV[1]) or '') ~= ARGV[3] then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
local open = redis.call('HGET', KEYS[1], 'open')
if not open then return 0 end
redis.call('HSET', KEYS[1], 'out', ARGV[4])
redis.call('HDEL', KEYS[1], 'data', 'open', 'by', 'at')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('HINCRBY', KEYS[4], ARGV[2], 0 - open) -- not -open, which is '-0' where every job was cancelled
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('HSET', KEYS[4], ARGV[2], 0) end -- see forget
redis.call('PUBLISH', ARGV[6], ARGV[1] .. ARGV[4])
return 1
"""

# KEYS batch running backlog; ARGV batch_id queue index deadline_ms
_CANCEL = """
if redis.call('HEXISTS', KEYS[1], 'head') == 0 then return 'unknown' end
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 'finished' end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 'running' end
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 >= tonumber(ARGV[4]) then return 'expired' end
if redis.call('HSETNX', KEYS[1], 'c:' .. ARGV[3], 1) == 1 then
  redis.call('HINCRBY', KEYS[1], 'open', -1)
  redis.call('HINCRBY', KEYS[3], ARGV[2], -1)
end
return 'cancelled'
"""

# KEYS batch running queue; ARGV batch_id worker_id message. Takes the claim from `worker_id` ('' for nobody)
# and sends the batch again, to the head of the queue: it has waited longest.
_REQUEUE = """
if (redis.call('HGET', KEYS[2], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'by')
redis.call('RPUSH', KEYS[3], ARGV[3])
return 1
"""

# KEYS batch pending deadlines backlog running; ARGV batch_id queue n_jobs. Forgets a batch without a record.
# How many of its jobs were cancelled went with the record; an empty queue puts the count right again.
_FORGET = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
if redis.call('ZREM', KEYS[2], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[4], ARGV[2], -ARGV[3]) end
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('HSET', KEYS[4], ARGV[2], 0) end
return 1
"""


_NOT_CANCELLABLE = {
    b"running": "the job is running; only a job that waits can be cancelled",
    b"finished": "the job has its outcome already; read it at its result_url",
    b"expired": "the job's deadline has passed; read it at its result_url",
}


@dataclass(frozen=True, slots=True)
class NewBatch:
    """A batch about to be accepted.

    Attributes:
        data: Samples of all jobs, C order, little-endian.
        message: Celery message that wakes a worker of the queue.
        once: Redis key to value, for the jobs that came with an idempotency key.
    """

    batch_id: str
    head: BatchHead
    data: bytes
    message: bytes
    accepted_at_ms: float
    once: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClaimedBatch:
    """A batch that a worker holds.

    Attributes:
        attempts: Times it was claimed, this one included.
        claimed_at_ms: When, Redis's clock.
        cancelled: Indexes of the jobs that are not to run.
        deaths: By index, times that a worker died while it ran this job alone.
        kept: By index, outcomes of jobs that ran alone under an earlier claim.
    """

    batch_id: str
    head: BatchHead
    data: bytes
    attempts: int
    claimed_at_ms: float
    cancelled: frozenset[int]
    deaths: Mapping[int, int] = field(default_factory=dict)
    kept: Mapping[int, JobOutcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as the ledger knows it. `outcome` is the whole batch's, where it has one."""

    ref: JobRef
    head: BatchHead
    status: Status
    outcome: BatchOutcome | None = None

    @property
    def job_outcome(self) -> JobOutcome | None:
        """The job's own outcome."""
        return self.outcome.jobs[self.ref.index] if self.outcome else None


def _connection_options(settings: Settings) -> dict[str, Any]:
    return {
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "health_check_interval": 25,
    }


def connect(settings: Settings) -> redis.Redis:
    """Synchronous client; connects on first use. Scripts are safe to send twice, so one loss is retried."""
    with _url_errors(settings):
        return redis.Redis.from_url(
            settings.effective_redis_url,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            **_connection_options(settings),
        )


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """Asynchronous client; connects on first use."""
    with _url_errors(settings):
        return redis.asyncio.Redis.from_url(settings.effective_redis_url, **_connection_options(settings))


@contextmanager
def _url_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ConfigurationError(
            f"REDIS_URL={settings.redis_url!r} is not a Redis URL ({error}); "
            "expected redis://host:port/db, rediss://… or unix:///path"
        ) from None


@contextmanager
def ledger_errors() -> Iterator[None]:
    """Turn every redis-py error into `LedgerUnavailableError`."""
    try:
        yield
    except ResponseError as error:
        raise LedgerUnavailableError(f"Redis refused the command: {error}", retry_after_s=1) from error
    except (RedisError, OSError) as error:
        raise LedgerUnavailableError("Redis does not answer; try again shortly", retry_after_s=1) from error


class ControllerLedger:
    """The ledger as a controller uses it.

    Args:
        client: Asynchronous client that answers bytes.
        retention_s: Seconds an outcome stays readable.
    """

    def __init__(self, client: redis.asyncio.Redis, retention_s: float) -> None:
        self._client = client
        self.retention_ms = int(retention_s * 1000)
        self._accept = client.register_script(_ACCEPT)
        self._finish = client.register_script(_FINISH)
        self._cancel = client.register_script(_CANCEL)
        self._requeue = client.register_script(_REQUEUE)
        self._forget = client.register_script(_FORGET)

    async def accept(self, batch: NewBatch) -> None:
        """Write a batch and its wake-up. Once this returns, its jobs are accepted.

        Raises:
            LedgerUnavailableError: Redis did not confirm; nobody may be told that the jobs are accepted.
        """
        head, batch_id, queue = batch.head, batch.batch_id, batch.head.queue
        last_deadline_ms = max(job.deadline_ms for job in head.jobs)
        ttl_ms = int(last_deadline_ms - batch.accepted_at_ms) + self.retention_ms
        with ledger_errors():
            await self._accept(
                keys=[
                    keys.batch(batch_id),
                    keys.pending(queue),
                    keys.deadlines(queue),
                    keys.BACKLOG,
                    queue,
                    *batch.once,
                ],
                args=[
                    batch_id,
                    queue,
                    wire.encode(head),
                    batch.data,
                    len(head.jobs),
                    batch.accepted_at_ms,
                    last_deadline_ms,
                    ttl_ms,
                    batch.message,
                    self.retention_ms,
                    *batch.once.values(),
                ],
            )

    async def read(self, ref: JobRef) -> JobView | None:
        """Look a job up; None where the ledger has no record of its batch.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            WireError: The record is of another schema version.
        """
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            # The time first: a job that nobody has claimed after its deadline is one that nobody ever will.
            pipe.time()
            pipe.hmget(keys.batch(ref.batch_id), ["head", "out", "by", f"c:{ref.index}"])
            time, (head, out, by, cancelled) = await pipe.execute()
        if head is None:
            return None
        view = JobView(ref, wire.decode_head(head), "queued", wire.decode_outcome(out) if out else None)
        status = _status(view, bool(by), bool(cancelled), to_ms(*time))
        return JobView(ref, view.head, status, view.outcome)

    async def cancel(self, ref: JobRef, head: BatchHead) -> None:
        """Cancel a job that no worker has claimed. Cancelling twice is the same as once.

        Raises:
            JobNotCancellableError: It runs, or has an outcome.
            UnknownJobError: Its record is gone.
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            answer = await self._cancel(
                keys=[keys.batch(ref.batch_id), keys.running(head.queue), keys.BACKLOG],
                args=[ref.batch_id, head.queue, ref.index, head.jobs[ref.index].deadline_ms],
            )
        if answer == b"unknown":
            raise UnknownJobError("no job has this id")
        if answer != b"cancelled":
            raise JobNotCancellableError(_NOT_CANCELLABLE[answer])

    async def requeue(self, batch_id: str, queue: str, dead_worker_id: str, message: bytes) -> bool:
        """Send a batch again; True if `dead_worker_id` ('' for nobody) held it and it has no outcome."""
        return bool(
            await self._requeue(
                keys=[keys.batch(batch_id), keys.running(queue), queue],
                args=[batch_id, dead_worker_id, message],
            )
        )

    async def close_unclaimed(self, batch_id: str, head: BatchHead, outcome: BatchOutcome) -> bool:
        """Write the outcome of a batch that nobody holds; True if it had none."""
        return bool(
            await self._finish(
                keys=_finish_keys(batch_id, head.queue),
                args=_finish_args(batch_id, head, "", outcome, self.retention_ms),
            )
        )

    async def forget(self, batch_id: str, queue: str) -> bool:
        """Drop a batch without a record from the indexes; True if it was one."""
        return bool(
            await self._forget(
                keys=_finish_keys(batch_id, queue), args=[batch_id, queue, ids.n_jobs(batch_id)]
            )
        )


class WorkerLedger:
    """The ledger as a worker uses it.

    Args:
        client: Synchronous client that answers bytes.
        worker_id: The worker's own id.
        queue: The worker's own queue.
        retention_s: Seconds an outcome stays readable.
    """

    def __init__(self, client: redis.Redis, worker_id: str, queue: str, retention_s: float) -> None:
        self._worker_id = worker_id
        self._queue = queue
        self._retention_ms = int(retention_s * 1000)
        self._claim = client.register_script(_CLAIM)
        self._progress = client.register_script(_PROGRESS)
        self._release = client.register_script(_RELEASE)
        self._finish = client.register_script(_FINISH)

    def claim(self, batch_id: str) -> ClaimedBatch | None:
        """Take a batch; None where it has its outcome, is gone, or is another worker's.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            WireError: The record cannot be read.
        """
        with ledger_errors():
            flat = self._claim(
                keys=[keys.batch(batch_id), keys.running(self._queue)], args=[batch_id, self._worker_id]
            )
        if not flat:
            return None
        try:
            return _claimed(batch_id, flat)
        except WireError:
            # Perhaps a worker of a newer release can read it; at its deadline a controller drops it.
            with ledger_errors():
                self._release(
                    keys=[keys.batch(batch_id), keys.running(self._queue)], args=[batch_id, self._worker_id]
                )
            raise

    def progress(self, batch: ClaimedBatch, next_index: int, done: tuple[int, JobOutcome] | None) -> bool:
        """Note which job is about to run alone, and what the one before it left behind.

        Returns:
            False where the claim was taken away meanwhile; the job is not to run then.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        done_args = (done[0], wire.encode(done[1])) if done else ("", "")
        with ledger_errors():
            return bool(
                self._progress(
                    keys=[keys.batch(batch.batch_id), keys.running(self._queue)],
                    args=[batch.batch_id, self._worker_id, next_index, *done_args],
                )
            )

    def finish(self, batch: ClaimedBatch, outcome: BatchOutcome) -> bool:
        """Write a batch's outcome and tell its controller; False where the claim was taken away meanwhile.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            return bool(
                self._finish(
                    keys=_finish_keys(batch.batch_id, self._queue),
                    args=_finish_args(
                        batch.batch_id, batch.head, self._worker_id, outcome, self._retention_ms
                    ),
                )
            )


def _claimed(batch_id: str, flat: list[bytes]) -> ClaimedBatch:
    *pairs, seconds, microseconds = flat
    fields: dict[bytes, bytes] = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return ClaimedBatch(
        batch_id,
        wire.decode_head(fields[b"head"]),
        fields[b"data"],
        attempts=int(fields[b"attempts"]),
        claimed_at_ms=to_ms(int(seconds), int(microseconds)),
        cancelled=frozenset(_by_index(fields, b"c:")),
        deaths={index: int(count) for index, count in _by_index(fields, b"x:").items()},
        kept={index: wire.decode_job_outcome(own) for index, own in _by_index(fields, b"o:").items()},
    )


def _by_index(fields: Mapping[bytes, bytes], prefix: bytes) -> dict[int, bytes]:
    return {int(name[len(prefix) :]): value for name, value in fields.items() if name.startswith(prefix)}


def _finish_keys(batch_id: str, queue: str) -> list[str]:
    return [
        keys.batch(batch_id),
        keys.pending(queue),
        keys.deadlines(queue),
        keys.BACKLOG,
        keys.running(queue),
    ]


def _finish_args(
    batch_id: str, head: BatchHead, worker_id: str, outcome: BatchOutcome, retention_ms: int
) -> list[str | bytes | int]:
    channel = keys.reply_channel(head.reply_to)
    return [batch_id, head.queue, worker_id, wire.encode(outcome), retention_ms, channel]


def _status(view: JobView, claimed: bool, cancelled: bool, now_ms: float) -> Status:
    own = view.job_outcome
    if own:
        return own.status
    if cancelled:
        return "cancelled"
    if claimed:
        return "running"
    return "expired" if view.head.jobs[view.ref.index].deadline_ms <= now_ms else "queued"
