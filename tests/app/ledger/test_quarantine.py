"""Quarantined jobs are listed, and sent again as new jobs: once, however often an operator says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis.asyncio

from app.celery_app import create_celery
from app.ledger import ids
from app.ledger.commands import NewBatch
from app.ledger.quarantine import Quarantine
from app.ledger.wakeup_message import batch_id_of, write_template
from app.ledger.wire import JobEntry
from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from app.server_errors import JobGoneError, JobNotQuarantinedError, UnknownJobError
from app.settings import Settings
from modelyard.schemas import QuarantinedJob
from tests.pool_samples import SIGNER, RedisServer, accept, head, new_batch, now_ms, outcome

RETENTION_S = 100.0
QUEUE = head().queue


@dataclass
class Yard:
    """A ledger in which jobs get quarantined, and the quarantine."""

    client: redis.asyncio.Redis
    worker: WorkerLedger
    quarantine: Quarantine

    async def quarantined(self, n_jobs: int = 2, index: int = 1, **of_head: Any) -> str:
        """Id of a job of a new batch that was quarantined."""
        now = now_ms()
        entry = JobEntry(1, now, now + 60_000, "highest_val_accuracy", forced=False, owner="shop")
        batch = new_batch(n_jobs, jobs=[entry] * n_jobs, **of_head)
        await accept(self.client, batch, retention_s=RETENTION_S)
        await self.client.lpop(QUEUE)
        await asyncio.to_thread(self._finish, batch, index)
        return ids.job_id(batch.batch_id, index)

    def _finish(self, batch: NewBatch, index: int) -> None:
        claimed = self.worker.claim(batch.batch_id)
        assert claimed
        assert self.worker.finish(
            claimed, outcome(len(batch.head.jobs)), {index: claimed.data[8 * index :][:8]}
        )

    async def resend(self, job_id: str, *, again: bool = False) -> str:
        return (await self.quarantine.resend(job_id, SIGNER, 60, again=again)).job_id

    async def listed(self) -> list[QuarantinedJob]:
        return await self.quarantine.jobs(10)


@pytest.fixture
async def yard(redis_server: RedisServer) -> AsyncIterator[Yard]:
    template = write_template(create_celery(Settings(redis_url=redis_server.url)))
    with redis.Redis.from_url(redis_server.url) as client:
        worker = WorkerLedger(client, "host-1", QUEUE, RETENTION_S)
        async with redis.asyncio.Redis.from_url(redis_server.url) as asynchronous:
            yield Yard(asynchronous, worker, Quarantine(asynchronous, template, RETENTION_S))


async def test_a_resent_job_of_any_contract_has_its_own_size_and_its_parameters(yard: Yard) -> None:
    old = await yard.quarantined(kind="columns", params=b"\x80", sizes=(12, 8), schema_version=2)
    sent = await yard.quarantine.resend(old, SIGNER, 60)
    assert (sent.head.kind, sent.head.params, sent.head.sizes) == ("columns", b"\x80", (8,))


async def test_a_resent_job_is_a_new_job_with_the_old_ones_samples_and_fresh_attempts(yard: Yard) -> None:
    old = await yard.quarantined()
    sent = await yard.quarantine.resend(old, SIGNER, 60)
    assert (sent.again, sent.head.resent_from, sent.head.reply_to) == (False, old, "")
    assert sent.head.jobs[0].owner == "shop"
    assert SIGNER.parse_job_id(sent.job_id)
    message = await yard.client.lpop(QUEUE)
    assert isinstance(message, bytes)
    claimed = await asyncio.to_thread(yard.worker.claim, batch_id_of(message) or "")
    assert claimed
    assert ids.job_id(claimed.batch_id, 0) == sent.job_id
    assert (claimed.head, claimed.attempts, claimed.data) == (sent.head, 1, b"\0\0\x80?\0\0\x80?")
    assert await yard.client.hget(keys.BACKLOG, QUEUE) == b"1"
    assert [job.resent_as for job in await yard.listed()] == [sent.job_id]


async def test_sending_twice_at_once_sends_once_unless_told_again(yard: Yard) -> None:
    old = await yard.quarantined()
    sent = await asyncio.gather(*(yard.resend(old) for _ in range(5)))
    assert len(set(sent)) == 1
    assert await yard.client.llen(QUEUE) == 1
    assert await yard.resend(old, again=True) != sent[0]
    assert await yard.client.llen(QUEUE) == 2


async def test_what_is_not_in_quarantine_is_refused_with_a_reason(yard: Yard) -> None:
    old = await yard.quarantined()
    with pytest.raises(JobNotQuarantinedError):
        await yard.resend(old.replace(".1", ".0"))
    with pytest.raises(UnknownJobError):
        await yard.resend("never given")
    await yard.client.delete(keys.batch(old.split(".")[0]))
    with pytest.raises(JobGoneError):
        await yard.resend(old)


async def test_the_newest_come_first_and_what_has_expired_is_not_listed(yard: Yard) -> None:
    jobs = [await yard.quarantined() for _ in range(3)]
    await yard.client.delete(keys.batch(jobs[1].split(".")[0]))
    await yard.client.zadd(keys.QUARANTINE, {"nonsense": 1, f"{'A' * 32}.x": 2})
    await yard.client.set(keys.batch("A" * 32), "not a hash")
    found = await yard.listed()
    assert {job.job_id for job in found} == {jobs[0], jobs[2]}
    assert found[0].quarantined_at_ms >= found[1].quarantined_at_ms
    assert (found[0].n_samples, found[0].model_version, found[0].resent_as) == (1, 1, None)
