"""Quarantined jobs: lists them, and resends one as a new job after its cause was removed.

A job is quarantined after it crashed its worker repeatedly; its samples stay in its batch's record as long as its
outcome. `modelyard:quarantine` lists the newest 10,000 quarantined jobs. A resent job is a new job with zero attempts.
The old job keeps its outcome and stores the new job's id, so that a second resend creates no second job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import msgspec

from app.clock import to_ms
from app.ledger import ids, wire
from app.ledger.commands import Accept, NewBatch
from app.ledger.ids import IdSigner, JobRef
from app.ledger.wakeup_message import WakeUpMessages
from app.ledger.wire import BatchHead, JobEntry
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import run
from app.server_errors import JobGoneError, JobNotQuarantinedError, UnknownJobError, WireError
from modelyard.schemas import QuarantinedJob


@dataclass(frozen=True, slots=True)
class Resent:
    """The result of resending a job.

    Attributes:
        job_id: Id of the new job.
        head: Head of the new job's batch.
        again: Whether the job had been resent before, so that this call sent nothing.
    """

    job_id: str
    head: BatchHead
    again: bool


class Quarantine:
    """Lists and resends quarantined jobs.

    Args:
        client: Asynchronous Redis client that returns bytes.
        template: Message template of `app.ledger.wakeup_message.write_template`.
        retention_s: Retention of outcomes in seconds.
    """

    def __init__(self, client: AsyncClient, template: bytes, retention_s: float) -> None:
        self._client = client
        self._template = template
        self._retention_ms = int(retention_s * 1000)

    async def jobs(self, limit: int) -> list[QuarantinedJob]:
        """The newest quarantined jobs with readable records, newest first.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            listed = await self._client.zrevrange(keys.QUARANTINE, 0, limit - 1, withscores=True)
            entries = cast(list[tuple[bytes, float]], listed)
            refs = [_ref(job_id.decode("ascii", "replace")) for job_id, _ in entries]
            pipe = self._client.pipeline(transaction=False)
            for ref in refs:
                pipe.hmget(keys.batch(ref.batch_id), ["head", f"r:{ref.index}"])
            rows = await pipe.execute(raise_on_error=False)
        found = zip(refs, entries, rows, strict=True)
        jobs = [_job(ref, at_ms, row) for ref, (_, at_ms), row in found if isinstance(row, list)]
        return [job for job in jobs if job]

    async def resend(
        self, job_id: str, signer: IdSigner, deadline_s: float, *, again: bool = False
    ) -> Resent:
        """Resend a quarantined job once: a second call returns the job that the first call created.

        Args:
            signer: Verifies the old id and creates the new one.
            deadline_s: Seconds until the new job expires.
            again: Whether to resend a job that was resent before.

        Raises:
            UnknownJobError: No job has this id.
            JobNotQuarantinedError: The job exists and is not in quarantine.
            JobGoneError: Its record has expired.
            LedgerUnavailableError: Redis does not answer.
            WireError: The record is unreadable.
        """
        ref = signer.parse_job_id(job_id)
        if ref is None:
            raise UnknownJobError("no job has this id")
        with ledger_errors():
            fields = await self._client.hmget(keys.batch(ref.batch_id), ["head", f"q:{ref.index}"])
            raw, samples = cast(list[bytes | None], fields)
            if raw is None:
                raise JobGoneError("the job's record has expired, and its samples with it; submit it again")
            if samples is None:
                raise JobNotQuarantinedError(
                    "the job is not in quarantine; only quarantined jobs can be resent"
                )
            now_ms = to_ms(*await self._client.time())
            batch = self._new_batch(job_id, ref, wire.decode_head(raw), signer, now_ms, deadline_s)
            new_id = ids.job_id(batch.batch_id, 0)
            call = Accept.of(batch, self._retention_ms).call_resend(ref, new_id, again=again)
            answer = await run(self._client, call)
        if answer is None:
            raise JobGoneError("the job's record has expired, and its samples with it; submit it again")
        given = cast(bytes, answer).decode()
        return Resent(given, batch.head, again=given != new_id)

    def _new_batch(
        self,
        job_id: str,
        ref: JobRef,
        head: BatchHead,
        signer: IdSigner,
        now_ms: float,
        deadline_s: float,
    ) -> NewBatch:
        old = head.jobs[ref.index]
        job = JobEntry(old.n_samples, now_ms, now_ms + deadline_s * 1000, old.policy, old.forced, old.owner)
        batch_id = signer.new_batch_id(now_ms, 1)
        return NewBatch(
            batch_id=batch_id,
            head=msgspec.structs.replace(
                head,
                jobs=[job],
                sizes=head.sizes[ref.index :][:1],
                reply_to="",  # nobody waits for it
                resent_from=job_id,
                callbacks={},  # its caller was told of the first outcome
            ),
            data=b"",
            message=WakeUpMessages(self._template, head.queue).write(batch_id),
            accepted_at_ms=now_ms,
        )


def _ref(job_id: str) -> JobRef:
    batch_id, _, index = job_id.partition(".")
    return JobRef(batch_id, int(index) if index.isdecimal() else -1)


def _job(ref: JobRef, at_ms: float, row: list[bytes | None]) -> QuarantinedJob | None:
    raw, resent = row
    try:
        head = wire.decode_head(raw or b"")
        entry = head.jobs[ref.index]
    except (WireError, IndexError):
        return None
    return QuarantinedJob(
        job_id=ids.job_id(ref.batch_id, ref.index),
        quarantined_at_ms=at_ms,
        worker=head.worker,
        model_name=head.model_name,
        model_version=head.model_version,
        n_samples=entry.n_samples,
        resent_as=resent.decode("ascii", "replace") if resent else None,
    )
