"""The job ledger: the truth about every accepted job. The Celery message is only the wake-up.

A batch is one hash, `modelyard:batch:<batch>`:

| field | value | from | until |
| --- | --- | --- | --- |
| `head` | `BatchHead`, msgpack | accept | the record expires |
| `data` | all samples, C order, little-endian | accept | finish |
| `c:<index>` | the job is cancelled | cancel | the record expires |
| `by` | id of the worker that claimed it | claim | finish or requeue |
| `attempts` | claims so far | claim | the record expires |
| `at` | job that runs alone now, after a worker died with the batch | progress | claim or finish |
| `x:<index>` | times that a worker died with this job alone | claim | the record expires |
| `o:<index>` | `JobOutcome` of a job that ran alone, msgpack | progress or keep | the record expires |
| `out` | `BatchOutcome`, msgpack | finish | the record expires |
| `q:<index>` | samples of a quarantined job | finish | the record expires |
| `r:<index>` | id of the job that it was sent again as, see `app.ledger.quarantine` | resend | the record expires |

Each change is one Lua script, so that it happens whole or not at all, in one round trip. Only large samples do
not go through Lua, which hashes and copies each value that it is given or gets: the transaction that runs the
accepting script writes them, and a worker reads them once it has claimed them. What can be derived is not stored: a
job that nobody claimed by its deadline *is* expired, whoever looks. How many jobs of a batch are open stands beside
its record, in `modelyard:open:<queue>`: a lost record takes no count with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import redis
import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from app.clock import to_ms
from app.errors import (
    ConfigurationError,
    IdempotencyPendingError,
    JobNotCancellableError,
    LedgerFullError,
    LedgerUnavailableError,
    ModelyardError,
    NewerWireError,
    UnknownJobError,
    WireError,
    first_line,
)
from app.ledger import ids, wire
from app.ledger.closing import CLOSE_COUNT, CLOSE_UNREADABLE, finish_keys, overdue_outcome, unreadable_args
from app.ledger.ids import JobRef
from app.ledger.wire import BatchHead, BatchOutcome, JobOutcome, Status
from app.redis import keys
from app.redis import url as redis_url
from app.redis.credentials import read_at_each_connect
from app.redis.refusals import async_renewing, refusal, renewing
from app.redis.script_connection import ScriptConnection
from app.settings import Settings

Args = list[str | bytes | int | float]

QUARANTINE_LIMIT = 10_000
SAMPLES = "data"  # the field of a record
LARGE_BYTES = (
    16 * 2**10
)  # of a batch's samples; from here on Lua costs more than a transaction and a round trip
DATA, ACCEPTED_TTL_MS = 3, 7  # among the arguments of `ACCEPT`

# KEYS batch pending deadlines backlog queue open once…
# ARGV batch_id queue head data n_jobs accepted_at_ms last_deadline_ms ttl_ms message once_ttl_ms once_value… fence…
# The data are '' where they stand in the record already; which a batch that was accepted before has no more use for.
_UNLESS_ACCEPTED = """
if redis.call('HEXISTS', KEYS[1], 'head') == 1 then
  if redis.call('HEXISTS', KEYS[1], 'out') == 1 then redis.call('HDEL', KEYS[1], 'data') end
  return 0
end
"""

# A fence is the value of an idempotency key for as long as the post that reserved it holds it. Where a key has
# another value, or none, its post was refused long ago, or another post has the key: the whole batch is refused, and
# the answer is the places, from 0, of those keys. So a command that arrives late cannot make a second job of a key.
_UNLESS_FENCED_OFF = """
local lost = {}
for i = 7, #KEYS do
  if redis.call('GET', KEYS[i]) ~= ARGV[i + #KEYS - 2] then lost[#lost + 1] = i - 7 end
end
if #lost > 0 then
  redis.call('DEL', KEYS[1])
  return lost
end
"""

_WRITE = """
redis.call('HSET', KEYS[1], 'head', ARGV[3])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'data', ARGV[4]) end
redis.call('PEXPIRE', KEYS[1], ARGV[8])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[7], ARGV[1])
redis.call('HSET', KEYS[6], ARGV[1], ARGV[5])
redis.call('HINCRBY', KEYS[4], ARGV[2], ARGV[5])
redis.call('LPUSH', KEYS[5], ARGV[9])
for i = 7, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 4], 'PX', ARGV[10]) end
return 1
"""

ACCEPT = _UNLESS_ACCEPTED + _UNLESS_FENCED_OFF + _WRITE

# Redis refuses to fill up further at a script's first write, and never refuses a deletion (`lua_oom` in 6.2, and
# `scriptVerifyOOM` in 7). So what ends accepted work deletes first, be it a field that is not there: where Redis
# is full, only `accept` is refused, whole.
_EVEN_IF_FULL = "redis.call('HDEL', KEYS[1], '')"

# In a transaction that writes the samples first: a full Redis refuses those, and all of the transaction with them.
ACCEPT_EVEN_IF_FULL = _EVEN_IF_FULL + ACCEPT

# For what was accepted before, and lost: its idempotency keys are its own, whatever they hold.
ACCEPT_AGAIN = _EVEN_IF_FULL + _UNLESS_ACCEPTED + _WRITE

# Part of scripts. `fields_of` answers a record's fields, where large samples are '', and, last, the time. `claim`
# answers them of a batch that the worker holds from now on; one that another worker holds is left to it: if that
# worker is dead, a controller takes the claim away first.
_CLAIMING = (
    f"local large = {LARGE_BYTES}"
    + """
local function fields_of(record)
  local answer, time = {}, redis.call('TIME')
  if redis.call('HSTRLEN', record, 'data') < large then
    answer = redis.call('HGETALL', record)
  else
    for _, name in ipairs(redis.call('HKEYS', record)) do
      answer[#answer + 1] = name
      answer[#answer + 1] = name == 'data' and '' or redis.call('HGET', record, name)
    end
  end
  answer[#answer + 1], answer[#answer + 2] = time[1], time[2]
  return answer
end
local function claim(record, running, batch, worker)
  local owner = redis.call('HGET', running, batch)
  if owner and owner ~= worker then return false end
  if redis.call('HEXISTS', record, 'data') == 0
    and (redis.call('EXISTS', record) == 0 or redis.call('HEXISTS', record, 'out') == 1) then return false end
  redis.call('HSET', running, batch, worker)
  redis.call('HSET', record, 'by', worker)
  redis.call('HINCRBY', record, 'attempts', 1)
  local at = redis.call('HGET', record, 'at')
  if at then
    redis.call('HINCRBY', record, 'x:' .. at, 1)
    redis.call('HDEL', record, 'at')
  end
  return fields_of(record)
end
"""
)

# KEYS batch running; ARGV batch_id worker_id
_CLAIM = f"{_EVEN_IF_FULL}{_CLAIMING}return claim(KEYS[1], KEYS[2], ARGV[1], ARGV[2])"

# Part of scripts. `take` claims the batch whose message is next on the queue, and takes the message off; any other
# message is left where it is, for Celery's consumer to judge. `taken_before` finds what is the worker's although it
# has no batch in hand: the answer of the script that took it was lost. Both answer what `claim` does and, last, the
# batch's id. They must not fail where a record is damaged: its message stays, for `_CLAIM` to tell.
_TAKING = (
    _CLAIMING
    + f"""
local function take(running, queue, worker)
  local message = redis.call('LINDEX', queue, -1)
  local batch = message and string.match(message, '"correlation_id": "([%w_-]+)"')
  if not batch or #batch ~= {ids.BATCH_ID_LENGTH} then return false end
  local answer = claim('{keys.batch("")}' .. batch, running, batch, worker)
  if not answer then return false end
  redis.call('RPOP', queue)
  answer[#answer + 1] = batch
  return answer
end
local function taken_before(running, worker)
  local entries = redis.call('HGETALL', running)
  for i = 1, #entries, 2 do
    local record = '{keys.batch("")}' .. entries[i]
    if entries[i + 1] == worker and redis.call('HEXISTS', record, 'data') == 1 then
      local answer = fields_of(record)
      answer[#answer + 1] = entries[i]
      return answer
    end
  end
  return false
end
local function unless_damaged(get, ...)
  local is_whole, answer = pcall(get, ...)
  return is_whole and answer
end
"""
)

# KEYS running queue; ARGV worker_id
_TAKE = f"""{_EVEN_IF_FULL}{_TAKING}
return unless_damaged(taken_before, KEYS[1], ARGV[1]) or unless_damaged(take, KEYS[1], KEYS[2], ARGV[1])
"""

# KEYS batch running; ARGV batch_id worker_id. Lets go of a batch without an outcome.
_RELEASE = """
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], 'by')
return 1
"""

# KEYS batch running; ARGV batch_id worker_id next_index ('' for none) done_index done_outcome (both '' for none)
_PROGRESS = f"""{_EVEN_IF_FULL}
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'o:' .. ARGV[4], ARGV[5]) end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], 'at') else redis.call('HSET', KEYS[1], 'at', ARGV[3]) end
return 1
"""

# KEYS batch; ARGV index outcome. Not for the holder of the claim alone, and never in the place of what one wrote.
_KEEP = f"""{_EVEN_IF_FULL}
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return 0 end
return redis.call('HSETNX', KEYS[1], 'o:' .. ARGV[1], ARGV[2])
"""

# KEYS batch pending deadlines backlog running open quarantine
# ARGV batch_id queue worker_id out ttl_ms channel, limit and, for each job to quarantine, index and samples.
# Only the holder of the claim may write; worker_id '' writes for a batch that nobody holds. A batch whose record
# is gone stays in the indexes: `forget` takes it out together with its jobs in the backlog.
_FINISH = (
    """
if (redis.call('HGET', KEYS[5], ARGV[1]) or '') ~= ARGV[3] then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HSETNX', KEYS[1], 'out', ARGV[4]) == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'data', 'by', 'at')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
"""
    + CLOSE_COUNT
    + """
redis.call('PUBLISH', ARGV[6], ARGV[1] .. ARGV[4])
if #ARGV > 7 then
  local time = redis.call('TIME')
  local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  for i = 8, #ARGV, 2 do
    redis.call('HSET', KEYS[1], 'q:' .. ARGV[i], ARGV[i + 1])
    redis.call('ZADD', KEYS[7], now_ms, ARGV[1] .. '.' .. ARGV[i])
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', now_ms - ARGV[5])
  redis.call('ZREMRANGEBYRANK', KEYS[7], 0, -1 - ARGV[7])
  redis.call('PEXPIRE', KEYS[7], ARGV[5])
end
return 1
"""
)

# KEYS and ARGV as above and, where it may take the next batch, the queue. Answers whether the outcome is written and
# what was taken. Sent again, as its answer was lost, it finds its own outcome written.
_FINISH_AND_TAKE = f"""{_TAKING}
local function finish() {_FINISH} end
if finish() == 1 then return {{1, KEYS[8] and unless_damaged(take, KEYS[5], KEYS[8], ARGV[3])}} end
if redis.call('HGET', KEYS[1], 'out') ~= ARGV[4] then return {{0}} end
return {{1, unless_damaged(taken_before, KEYS[5], ARGV[3])}}
"""

# KEYS batch running backlog open; ARGV batch_id queue index deadline_ms
_CANCEL = f"""{_EVEN_IF_FULL}
if redis.call('HEXISTS', KEYS[1], 'head') == 0 then return 'unknown' end
if redis.call('HEXISTS', KEYS[1], 'out') == 1 then return 'finished' end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then return 'running' end
local time = redis.call('TIME')
if time[1] * 1000 + time[2] / 1000 >= tonumber(ARGV[4]) then return 'expired' end
if redis.call('HSETNX', KEYS[1], 'c:' .. ARGV[3], 1) == 1 then
  redis.call('HINCRBY', KEYS[4], ARGV[1], -1)
  redis.call('HINCRBY', KEYS[3], ARGV[2], -1)
end
return 'cancelled'
"""

# KEYS batch running queue; ARGV batch_id worker_id message. Takes the claim from `worker_id` ('' for nobody)
# and sends the batch again, to the head of the queue: it has waited longest.
REQUEUE = """
if (redis.call('HGET', KEYS[2], ARGV[1]) or '') ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('HEXISTS', KEYS[1], 'data') == 0 then return 0 end
redis.call('HDEL', KEYS[1], 'by')
redis.call('RPUSH', KEYS[3], ARGV[3])
return 1
"""

# KEYS batch pending deadlines backlog running open; ARGV batch_id queue. Forgets a batch without a record.
_FORGET = (
    """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HDEL', KEYS[5], ARGV[1])
"""
    + CLOSE_COUNT
    + "return 1"
)


RETRY_FULL_S = 5
MAX_CONNECTIONS = 64
WAIT_GRACE_S = 0.5  # Redis may end a wait a tenth of a second late
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
        once: Of each job that came with an idempotency key: Redis key, value while it is reserved, value from now on.
    """

    batch_id: str
    head: BatchHead
    data: bytes
    message: bytes
    accepted_at_ms: float
    once: Sequence[tuple[str, str, str]] = ()


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


def _connection_options(timeout_s: float) -> dict[str, Any]:
    return {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "health_check_interval": 25}


def connect(settings: Settings, timeout_s: float | None = None, **options: Any) -> redis.Redis:
    """Synchronous client; connects on first use. Scripts are safe to send twice, so losses are retried.

    Args:
        timeout_s: Seconds after which a command has failed, where not as the settings say.
    """
    with _url_errors(settings):
        pool = redis.ConnectionPool.from_url(
            settings.effective_redis_url,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            **_connection_options(timeout_s or settings.redis_timeout_s),
        )
    pool.connection_class = renewing(pool.connection_class)
    read_at_each_connect(pool, settings)
    client = redis.Redis(connection_pool=pool, **options)
    client.auto_close_connection_pool = True
    return client


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """Asynchronous client; connects on first use.

    Nothing is tried twice, as a caller waits; and while Redis hangs, not every caller takes a connection more.
    """
    with _url_errors(settings):
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.effective_redis_url,
            max_connections=MAX_CONNECTIONS,
            timeout=settings.redis_timeout_s,
            **_connection_options(settings.redis_timeout_s),
        )
    pool.connection_class = async_renewing(pool.connection_class)
    read_at_each_connect(pool, settings)
    return redis.asyncio.Redis.from_pool(pool)


@contextmanager
def _url_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except ValueError:  # whose text may quote the password
        raise ConfigurationError(
            f"REDIS_URL={settings.shown_redis_url} is not a Redis URL; {redis_url.EXPECTED}"
        ) from None


# What Redis says where a key or field holds something else than a script of ours expects.
_DAMAGE = ("WRONGTYPE", "is not an integer", "is not a valid float")


@contextmanager
def ledger_errors() -> Iterator[None]:
    """Turn every redis-py error into `LedgerUnavailableError`, or `WireError` where only the values are at fault."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise _ledger_error(error) from error


def _ledger_error(error: Exception) -> ModelyardError:
    text = str(error)
    if isinstance(error, ResponseError) and any(sign in text for sign in _DAMAGE):
        return WireError(f"Redis holds a value of another kind than expected: {first_line(error)}")
    if isinstance(error, ResponseError) and "maxmemory" in text:  # before Redis 7 it has no class of its own
        return LedgerFullError(
            "Redis is full; jobs are accepted again once outcomes have expired or it is given more memory",
            retry_after_s=RETRY_FULL_S,
        )
    if said := refusal(error):
        return LedgerUnavailableError(f"Redis refuses: {said}", retry_after_s=1)
    if isinstance(error, ResponseError):
        return LedgerUnavailableError(f"Redis refused the command: {error}", retry_after_s=1)
    return LedgerUnavailableError("Redis does not answer; try again shortly", retry_after_s=1)


class ControllerLedger:
    """The ledger as a controller uses it.

    Args:
        client: Asynchronous client that answers bytes.
        retention_s: Seconds an outcome stays readable.
    """

    def __init__(self, client: redis.asyncio.Redis, retention_s: float) -> None:
        self._client = client
        self.retention_ms = int(retention_s * 1000)
        self._accept = client.register_script(ACCEPT)
        self._accept_stored = client.register_script(ACCEPT_EVEN_IF_FULL)
        self._finish = client.register_script(_FINISH)
        self._cancel = client.register_script(_CANCEL)
        self._requeue = client.register_script(REQUEUE)
        self._forget = client.register_script(_FORGET)
        self._close_unreadable = client.register_script(CLOSE_UNREADABLE)

    async def accept(self, batch: NewBatch) -> None:
        """Write a batch and its wake-up. Once this returns, its jobs are accepted.

        Raises:
            IdempotencyPendingError: A job's idempotency key is not its post's any more; nothing is accepted.
            LedgerUnavailableError: Redis did not confirm; nobody may be told that the jobs are accepted.
        """
        names, args = accept_call(batch, self.retention_ms)
        with ledger_errors():
            if len(batch.data) < LARGE_BYTES:
                reply = await self._accept(keys=names, args=args)
            else:
                samples, args = samples_apart(names, args)
                async with self._client.pipeline(transaction=True) as transaction:
                    transaction.hset(samples.record, SAMPLES, samples.data)
                    transaction.pexpire(samples.record, samples.ttl_ms)
                    await self._accept_stored(keys=names, args=args, client=transaction)
                    *_, reply = await transaction.execute()
        if isinstance(reply, list):
            raise key_lost()

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
        n_jobs = ids.n_jobs(ref.batch_id)
        if len(view.head.jobs) != n_jobs or (view.outcome and len(view.outcome.jobs) != n_jobs):
            raise WireError("the record is another batch's")
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
                keys=[
                    keys.batch(ref.batch_id),
                    keys.running(head.queue),
                    keys.BACKLOG,
                    keys.open_jobs(head.queue),
                ],
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
                keys=finish_keys(batch_id, head.queue),
                args=_finish_args(batch_id, head, "", outcome, self.retention_ms),
            )
        )

    async def close_overdue(self, batch_id: str, queue: str, now_ms: float) -> bool:
        """Close a batch that no worker took in time, or whose record is gone; True if it was open.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            WireError: Its record cannot be read: see `close_unreadable`.
        """
        with ledger_errors():
            fields = cast(dict[bytes, bytes], await self._client.hgetall(keys.batch(batch_id)))
            if not fields:
                return await self.forget(batch_id, queue)
            head = wire.decode_head(fields.get(b"head", b""))
            if head.queue != queue or len(head.jobs) != ids.n_jobs(batch_id):
                raise WireError("the record's head is another batch's")
            return await self.close_unclaimed(batch_id, head, overdue_outcome(head, fields, now_ms))

    async def close_unreadable(self, batch_id: str, queue: str, now_ms: float) -> bool:
        """Close a batch that nobody holds and whose record cannot be read; True if it was open.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        fields: list[bytes] = []
        with suppress(WireError), ledger_errors():
            fields = cast(list[bytes], await self._client.hkeys(keys.batch(batch_id)))
        with ledger_errors():
            number = int(cast(bytes | None, await self._client.hget(keys.NUMBERS, queue)) or 0)
            args = unreadable_args(batch_id, queue, number, "", fields, now_ms, self.retention_ms)
            return bool(await self._close_unreadable(keys=finish_keys(batch_id, queue), args=args))

    async def forget(self, batch_id: str, queue: str) -> bool:
        """Drop a batch without a record from the indexes; True if it was one."""
        return bool(await self._forget(keys=finish_keys(batch_id, queue), args=[batch_id, queue]))


class WorkerLedger:
    """The ledger as a worker uses it.

    Args:
        client: Synchronous client that answers bytes.
        worker_id: The worker's own id.
        queue: The worker's own queue.
        retention_s: Seconds an outcome stays readable.
        silences: Gives a number that changes when Redis did not answer the worker elsewhere.

    Attributes:
        taken: Id of the batch that was taken off the queue last, and is to be claimed next; None where there is none.
    """

    def __init__(
        self,
        client: redis.Redis,
        worker_id: str,
        queue: str,
        retention_s: float,
        silences: Callable[[], int] = lambda: 0,
    ) -> None:
        self.taken: str | None = None
        self._taken_fields: list[bytes] = []
        self._client = client
        self._scripts = ScriptConnection(client)
        self._worker_id = worker_id
        self._queue = queue
        self._retention_ms = int(retention_s * 1000)
        self._silences = silences
        self._heard_silences = 0
        self._claim = client.register_script(_CLAIM)
        self._take = client.register_script(_TAKE)
        self._progress = client.register_script(_PROGRESS)
        self._release = client.register_script(_RELEASE)
        self._finish = client.register_script(_FINISH_AND_TAKE)
        self._close_unreadable = client.register_script(CLOSE_UNREADABLE)

    def claim(self, batch_id: str) -> ClaimedBatch | None:
        """Take a batch; None where it has its outcome, is gone, or is another worker's.

        The one in `taken` is this worker's already; that costs no round trip.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            NewerWireError: The record is of a newer release; it is left for a worker that can read it.
            WireError: The record cannot be read; its jobs have failed.
        """
        held = [keys.batch(batch_id), keys.running(self._queue)]
        taken, self.taken = self.taken, None
        if self._heard_silences != (silences := self._silences()):
            self._heard_silences = silences
            self._client.connection_pool.disconnect()  # it may be cut off, which would cost a timeout to see
        try:
            if batch_id == taken:
                flat = self._taken_fields
            else:
                with ledger_errors():
                    flat = self._scripts.run(self._claim, held, [batch_id, self._worker_id])
            return self._claimed(batch_id, flat) if flat else None
        except NewerWireError:
            with ledger_errors():
                self._release(keys=held, args=[batch_id, self._worker_id])
            raise
        except WireError:
            self.close_unreadable(batch_id)
            raise

    def _claimed(self, batch_id: str, flat: list[bytes]) -> ClaimedBatch | None:
        *pairs, seconds, microseconds = flat
        fields: dict[bytes, bytes] = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if fields.get(SAMPLES.encode()) == b"":
            with ledger_errors():
                data = self._scripts.command("HGET", keys.batch(batch_id), SAMPLES)
            if data is None:  # Redis lost it since, or another worker was given the batch and has finished it
                return None
            fields[SAMPLES.encode()] = data
        return _claimed(batch_id, self._queue, fields, to_ms(int(seconds), int(microseconds)))

    def close_unreadable(self, batch_id: str) -> bool:
        """Close a batch of this worker's, or of nobody's, that cannot be read; True if it was open.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        if not ids.is_well_formed(batch_id):
            return False
        fields: list[bytes] = []
        with suppress(WireError), ledger_errors():
            fields = cast(list[bytes], self._client.hkeys(keys.batch(batch_id)))
        with ledger_errors():
            number = int(cast(bytes | None, self._client.hget(keys.NUMBERS, self._queue)) or 0)
            now_ms = to_ms(*self._client.time())
            args = unreadable_args(
                batch_id, self._queue, number, self._worker_id, fields, now_ms, self._retention_ms
            )
            return bool(self._close_unreadable(keys=finish_keys(batch_id, self._queue), args=args))

    def progress(
        self, batch: ClaimedBatch, next_index: int | None, done: tuple[int, JobOutcome] | None
    ) -> bool:
        """Note which job is about to run alone (None for none), and what the one before it left behind.

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
                    args=[
                        batch.batch_id,
                        self._worker_id,
                        "" if next_index is None else next_index,
                        *done_args,
                    ],
                )
            )

    def finish(
        self,
        batch: ClaimedBatch,
        outcome: BatchOutcome,
        quarantined: Mapping[int, bytes] | None = None,
        *,
        take: bool = False,
    ) -> bool:
        """Write a batch's outcome and tell its controller; False where the claim was taken away meanwhile.

        Args:
            quarantined: Samples of the jobs that are quarantined, by index; kept as long as the outcome.
            take: Whether to take the next batch off the queue, too; `taken` then says which.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        names = [*finish_keys(batch.batch_id, self._queue), keys.QUARANTINE]
        args = _finish_args(batch.batch_id, batch.head, self._worker_id, outcome, self._retention_ms)
        args.append(QUARANTINE_LIMIT)
        for index, samples in (quarantined or {}).items():
            args += [index, samples]
        with ledger_errors():
            written, *taken = self._scripts.run(self._finish, names + [self._queue] * take, args)
        self._note_taken(taken and taken[0])
        return bool(written)

    def take(self, limit_s: float = 0) -> None:
        """Take the next batch off the queue, if the next message is one's; `taken` then says which.

        Args:
            limit_s: Seconds to wait for a message.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            self._note_taken(self._wait_and_take(limit_s))

    def _wait_and_take(self, limit_s: float) -> Any:
        names, args = [keys.running(self._queue), self._queue], [self._worker_id]
        if limit_s > 0:
            at_least_s = max(limit_s, 0.01)  # Redis 6.2 waits for ever where it is a thousandth
            # From the queue's end to its end: BLMOVE shows the message and takes none.
            wait = ("BLMOVE", self._queue, self._queue, "RIGHT", "RIGHT", at_least_s)
            # A loss: what the script may have taken is this worker's, and is found below.
            with suppress(NoScriptError, RedisConnectionError):
                return self._scripts.run_after(wait, at_least_s + WAIT_GRACE_S, self._take, names, args)
        return self._scripts.run(self._take, names, args)

    def _note_taken(self, answer: list[bytes] | None) -> None:
        *self._taken_fields, batch_id = answer or [b""]
        self.taken = batch_id.decode() or None


def _claimed(batch_id: str, queue: str, fields: Mapping[bytes, bytes], at_ms: float) -> ClaimedBatch:
    try:
        head = wire.decode_head(fields[b"head"])
        if head.queue != queue or len(head.jobs) != ids.n_jobs(batch_id):
            raise WireError("the record's head is another batch's")
        return ClaimedBatch(
            batch_id,
            head,
            fields[SAMPLES.encode()],
            attempts=int(fields[b"attempts"]),
            claimed_at_ms=at_ms,
            cancelled=frozenset(_by_index(fields, b"c:")),
            deaths={index: int(count) for index, count in _by_index(fields, b"x:").items()},
            kept={index: wire.decode_job_outcome(own) for index, own in _by_index(fields, b"o:").items()},
        )
    except (KeyError, ValueError) as error:
        raise WireError(f"the record lacks a field or holds nonsense: {error}") from None


def _by_index(fields: Mapping[bytes, bytes], prefix: bytes) -> dict[int, bytes]:
    return {int(name[len(prefix) :]): value for name, value in fields.items() if name.startswith(prefix)}


def accept_call(batch: NewBatch, retention_ms: int) -> tuple[list[str], Args]:
    """Keys and arguments of `ACCEPT`."""
    head, batch_id, queue = batch.head, batch.batch_id, batch.head.queue
    last_deadline_ms = max(job.deadline_ms for job in head.jobs)
    names = [
        keys.batch(batch_id),
        keys.pending(queue),
        keys.deadlines(queue),
        keys.BACKLOG,
        queue,
        keys.open_jobs(queue),
        *[name for name, _, _ in batch.once],
    ]
    return names, [
        batch_id,
        queue,
        wire.encode(head),
        batch.data,
        len(head.jobs),
        batch.accepted_at_ms,
        last_deadline_ms,
        int(last_deadline_ms - batch.accepted_at_ms) + retention_ms,
        batch.message,
        retention_ms,
        *[value for _, _, value in batch.once],
        *[fence for _, fence, _ in batch.once],
    ]


def key_lost() -> IdempotencyPendingError:
    """Why a job was not accepted whose idempotency key was no longer its post's."""
    return IdempotencyPendingError(
        "the job was not accepted in time for its Idempotency-Key; send it again", retry_after_s=1
    )


@dataclass(frozen=True, slots=True)
class Samples:
    """Where the samples of a new batch go, and for how many ms."""

    record: str
    data: bytes
    ttl_ms: int


def samples_apart(names: list[str], args: Args) -> tuple[Samples, Args]:
    """What `accept_call` answers, for a transaction: the samples, and the script's arguments without them."""
    data, ttl_ms = cast(bytes, args[DATA]), cast(int, args[ACCEPTED_TTL_MS])
    return Samples(names[0], data, ttl_ms), [*args[:DATA], b"", *args[DATA + 1 :]]


def keep_outcome(client: redis.Redis, batch_id: str, index: int, outcome: JobOutcome) -> None:
    """Have a job of an open batch end so, once the batch is claimed again, unless it ends by itself before.

    Raises:
        LedgerUnavailableError: Redis does not answer.
    """
    with ledger_errors():
        client.eval(_KEEP, 1, keys.batch(batch_id), index, wire.encode(outcome))


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
