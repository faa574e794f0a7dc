"""The controller's side of the ledger. Batches are accepted elsewhere: by `commands.Accept`, on the `RedisLink`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from app.clock import to_ms
from app.ledger import commands, ids, wire
from app.ledger.closing import overdue_outcome
from app.ledger.ids import JobRef
from app.ledger.wire import BatchHead, BatchOutcome
from app.redis import keys
from app.redis.client import AsyncClient, RedisError, ledger_error, ledger_errors
from app.redis.script import run
from app.server_errors import JobNotCancellableError, UnknownJobError, WireError
from modelyard.schemas import Status

_NOT_CANCELLABLE = {
    b"running": "the job is running; only a queued job can be cancelled",
    b"moved": "the job was moved to another version at this moment; try again",
    b"finished": "the job already has its outcome; read it at its result_url",
    b"expired": "the job's deadline has passed; read it at its result_url",
}


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as stored in the ledger.

    Attributes:
        outcome: The outcome of its whole batch, if there is one.
        webhook: The state of its webhook, see `webhook_list`; None before the first attempt.
    """

    ref: JobRef
    head: BatchHead
    status: Status
    outcome: BatchOutcome | None = None
    webhook: bytes | None = None


class ControllerLedger:
    """The controller's side of the ledger.

    Args:
        client: Asynchronous Redis client that returns bytes.
        retention_s: Retention of outcomes in seconds.
    """

    def __init__(self, client: AsyncClient, retention_s: float) -> None:
        self._client = client
        self.retention_ms = int(retention_s * 1000)

    async def read(self, ref: JobRef) -> JobView | None:
        """Look up a job; None if the ledger has no record of its batch.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            WireError: The record is of another schema version.
        """
        found = (await self.read_all([ref]))[ref]
        if isinstance(found, WireError):
            raise found
        return found

    async def read_all(self, refs: Iterable[JobRef]) -> dict[JobRef, JobView | WireError | None]:
        """Look up jobs in one round trip: each as by `read`, with the error of an unreadable record in its place.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        of_batch: dict[str, list[JobRef]] = {}
        for ref in dict.fromkeys(refs):
            of_batch.setdefault(ref.batch_id, []).append(ref)
        pipe = self._client.pipeline(transaction=False)
        # Read the time first: a job that is unclaimed after its deadline can never be claimed.
        pipe.time()
        for batch_id, own in of_batch.items():
            pipe.hmget(keys.batch(batch_id), _fields(own))
        with ledger_errors():
            time, *records = await pipe.execute(raise_on_error=False)
            if isinstance(time, Exception):
                raise time
        now_ms = to_ms(*time)
        found: dict[JobRef, JobView | WireError | None] = {}
        for own, record in zip(of_batch.values(), records, strict=True):
            try:
                found |= _views(own, record, now_ms)
            except WireError as error:
                found |= dict.fromkeys(own, error)
        return found

    async def cancel(self, ref: JobRef, head: BatchHead) -> None:
        """Cancel a job that no worker has claimed. The operation is idempotent.

        Raises:
            JobNotCancellableError: It is running or has an outcome.
            UnknownJobError: Its record is gone.
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            answer = await run(self._client, commands.cancel(ref, head))
        if answer == b"unknown":
            raise UnknownJobError("no job has this id")
        if answer != b"cancelled":
            raise JobNotCancellableError(_NOT_CANCELLABLE[answer])

    async def requeue(self, batch_id: str, queue: str, dead_worker_id: str, message: bytes) -> bool:
        """Send a batch again; True if `dead_worker_id` ('' for an unclaimed batch) held it and it has no outcome."""
        return bool(await run(self._client, commands.requeue(batch_id, queue, dead_worker_id, message)))

    async def requeue_from_dead(self, batch_id: str, queue: str, worker_id: str, message: bytes) -> bool:
        """The same as `requeue`, unless the worker is alive."""
        return bool(await run(self._client, commands.requeue_from_dead(batch_id, queue, worker_id, message)))

    async def close_unclaimed(self, batch_id: str, head: BatchHead, outcome: BatchOutcome) -> bool:
        """Write the outcome of an unclaimed batch; True if it had none."""
        return bool(await run(self._client, commands.finish(batch_id, head, "", outcome, self.retention_ms)))

    async def close_overdue(self, batch_id: str, queue: str, now_ms: float) -> bool:
        """Close a batch that no worker took in time, or whose record is missing; True if it was open.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            WireError: Its record is unreadable, see `close_unreadable`.
        """
        with ledger_errors():
            fields = cast(dict[bytes, bytes], await self._client.hgetall(keys.batch(batch_id)))
            if not fields:
                return await self.forget(batch_id, queue)
            head = wire.decode_head(fields.get(b"head", b""))
            if head.queue != queue or len(head.jobs) != ids.n_jobs(batch_id):
                raise WireError("the record's head belongs to another batch")
            return await self.close_unclaimed(batch_id, head, overdue_outcome(head, fields, now_ms))

    async def close_unreadable(self, batch_id: str, queue: str, now_ms: float) -> bool:
        """Close an unclaimed batch with an unreadable record; True if it was open.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        fields: list[bytes] = []
        with suppress(WireError), ledger_errors():
            fields = cast(list[bytes], await self._client.hkeys(keys.batch(batch_id)))
        with ledger_errors():
            number = int(cast(bytes | None, await self._client.hget(keys.NUMBERS, queue)) or 0)
            call = commands.close_unreadable(batch_id, queue, number, "", fields, now_ms, self.retention_ms)
            return bool(await run(self._client, call))

    async def forget(self, batch_id: str, queue: str) -> bool:
        """Remove a batch from the indexes if it has no record; True if it was removed."""
        return bool(await run(self._client, commands.forget(batch_id, queue)))


def _fields(refs: list[JobRef]) -> list[str]:
    return ["head", "out", "by", *[f"{kind}:{ref.index}" for ref in refs for kind in ("c", "w")]]


def _views(
    refs: list[JobRef], record: list[bytes | None] | RedisError, now_ms: float
) -> dict[JobRef, JobView | None]:
    """Jobs of one batch.

    Args:
        record: The `_fields` of the batch; or Redis's refusal to read them.

    Raises:
        LedgerUnavailableError: The refusal.
        WireError: The record is unreadable.
    """
    if isinstance(record, RedisError):
        raise ledger_error(record) from record
    head_data, outcome_data, by, *own = record
    if head_data is None:
        return dict.fromkeys(refs)
    head, n_jobs = wire.decode_head(head_data), ids.n_jobs(refs[0].batch_id)
    outcome = wire.decode_outcome(outcome_data) if outcome_data else None
    if len(head.jobs) != n_jobs or (outcome and len(outcome.jobs) != n_jobs):
        raise WireError("the record belongs to another batch")
    views: dict[JobRef, JobView | None] = {}
    for ref, is_cancelled, webhook in zip(refs, own[::2], own[1::2], strict=True):
        status: Status
        if outcome:
            status = outcome.jobs[ref.index].status
        elif is_cancelled:
            status = "cancelled"
        elif by:
            status = "running"
        else:
            status = "expired" if head.jobs[ref.index].deadline_ms <= now_ms else "queued"
        views[ref] = JobView(ref, head, status, outcome, webhook)
    return views
