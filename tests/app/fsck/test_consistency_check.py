"""The doctor on a real Redis: each invariant broken by hand is found and mended, and nothing else is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis.asyncio

from app.celery_app import create_celery
from app.fsck.consistency_check import Doctor, Report, patience_s
from app.ledger import wire
from app.ledger.commands import NewBatch
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from app.settings import Settings
from app.worker_record import encode_record
from tests.pool_samples import RedisServer, accept, head, new_batch, now_ms, outcome, record

QUEUE = head().queue
LONG_AGO_MS = 20_000
RETENTION_S = 100.0
PATIENCE_S = 0.05


@dataclass
class Ward:
    """A ledger with a few healthy batches, and a doctor."""

    client: redis.asyncio.Redis
    doctor: Doctor
    messages: WakeUpMessages
    batches: list[NewBatch] = field(default_factory=list)

    async def accept(self, n_jobs: int = 2, **fields: Any) -> str:
        made = new_batch(n_jobs, **fields)
        batch = NewBatch(
            made.batch_id, made.head, made.data, self.messages.write(made.batch_id), made.accepted_at_ms
        )
        await accept(self.client, batch, retention_s=RETENTION_S)
        self.batches.append(batch)
        return batch.batch_id

    async def as_worker(self, act: Callable[[WorkerLedger], object], worker_id: str = "host-1") -> None:
        """Do something as a worker does, whose client is synchronous."""
        options = self.client.connection_pool.connection_kwargs

        def go() -> None:
            with redis.Redis.from_url(f"unix://{options['path']}") as client:
                act(WorkerLedger(client, worker_id, QUEUE, RETENTION_S))

        await asyncio.to_thread(go)

    async def claim(self, batch_id: str, worker_id: str) -> None:
        await self._take_message(batch_id)
        await self.as_worker(lambda ledger: ledger.claim(batch_id), worker_id)

    async def finish(self, batch_id: str) -> None:
        def go(ledger: WorkerLedger) -> None:
            claimed = ledger.claim(batch_id)
            assert claimed
            ledger.finish(claimed, outcome(len(claimed.head.jobs)))

        await self._take_message(batch_id)
        await self.as_worker(go)

    async def _take_message(self, batch_id: str) -> None:
        message = next(batch.message for batch in self.batches if batch.batch_id == batch_id)
        await self.client.lrem(QUEUE, 1, message.decode())

    async def publish(self, worker_id: str = "host-1", **fields: Any) -> None:
        made = record(worker_id=worker_id, **fields)
        await self.client.set(keys.worker(worker_id), encode_record(made), px=60_000)
        await self.client.zadd(keys.WORKERS, {worker_id: now_ms()})

    async def examine(self) -> Report:
        return await self.doctor.examine(PATIENCE_S)

    async def backlog(self) -> int:
        return int(await self.client.hget(keys.BACKLOG, QUEUE) or 0)


@pytest.fixture
async def ward(redis_server: RedisServer) -> AsyncIterator[Ward]:
    settings = Settings(redis_url=redis_server.url, heartbeat_s=0.01, result_retention_s=RETENTION_S)
    messages = WakeUpMessages(write_template(create_celery(settings)), QUEUE)
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        made = Ward(client, Doctor(client, settings), messages)
        await client.hset(keys.NUMBERS, QUEUE, "1")
        await made.publish()
        await made.finish(await made.accept())
        await made.claim(await made.accept(), "host-1")
        await made.accept(accepted_at_ms=now_ms() - LONG_AGO_MS)
        await made.accept()
        yield made


Break = Callable[[Ward, str], Awaitable[object]]


async def retire_with_messages(ward: Ward, batch_id: str) -> None:
    await ward.client.delete(keys.worker("host-1"))
    await ward.client.hdel(keys.running(QUEUE), ward.batches[1].batch_id)
    for i in range(600):
        await ward.client.lpush(QUEUE, ward.messages.write(f"{i:032}"))


def key_of(ward: Ward, batch_id: str) -> str:
    return keys.batch(batch_id)


BROKEN: dict[str, Break] = {
    "no_record": lambda ward, b: ward.client.delete(keys.batch(b)),
    "no_input": lambda ward, b: ward.client.hdel(keys.batch(b), "data"),
    "finished_but_listed": lambda ward, b: ward.client.hset(keys.batch(b), "out", wire.encode(outcome(2))),
    "not_listed": lambda ward, b: ward.client.zrem(keys.deadlines(QUEUE), b),
    "not_listed at all": lambda ward, b: _unlist(ward, b),
    "dead_claim": lambda ward, b: ward.claim(b, "dead"),
    "no_batch": lambda ward, b: ward.client.zadd(
        keys.deadlines(QUEUE), {b"\xff nonsense": now_ms() + 60_000}
    ),
    "backlog_wrong": lambda ward, b: ward.client.hincrby(keys.BACKLOG, QUEUE, 3),
    "backlog_wrong, not a number": lambda ward, b: ward.client.hset(keys.BACKLOG, QUEUE, "many"),
    "overdue": lambda ward, b: ward.accept(
        accepted_at_ms=now_ms() - LONG_AGO_MS, deadline_ms=now_ms() - 10_000
    ),
    "lost_message": lambda ward, b: ward.client.delete(QUEUE),
    "no_ttl": lambda ward, b: ward.client.persist(keys.batch(b)),
    "no_ttl of a worker": lambda ward, b: ward.client.set(keys.worker("for ever"), encode_record(record())),
    "no_ttl of an outcome": lambda ward, b: ward.client.persist(keys.batch(ward.batches[0].batch_id)),
    "unreadable_batch": lambda ward, b: ward.client.hset(keys.batch(b), "head", b"?"),
    "unreadable_batch of another type": lambda ward, b: _replace(ward, keys.batch(b)),
    "unreadable_worker": lambda ward, b: ward.client.set(keys.worker("odd"), b"?", px=60_000),
    "stale_messages": retire_with_messages,
}


async def _unlist(ward: Ward, batch_id: str) -> None:
    await ward.client.hset(keys.batch(batch_id), "c:1", 1)
    await ward.client.zrem(keys.deadlines(QUEUE), batch_id)
    await ward.client.zrem(keys.pending(QUEUE), batch_id)
    await ward.client.hdel(keys.open_jobs(QUEUE), batch_id)
    await ward.client.hincrby(keys.BACKLOG, QUEUE, -2)


async def _replace(ward: Ward, name: str) -> None:
    await ward.client.delete(name)
    await ward.client.set(name, "not a hash", px=60_000)


@pytest.mark.parametrize("what", BROKEN)
async def test_what_was_broken_by_hand_is_found_and_mended(ward: Ward, what: str) -> None:
    assert (await ward.examine()).is_healthy
    batch_id = await ward.accept()
    await BROKEN[what](ward, batch_id)
    report = await ward.examine()
    kind = what.split()[0].rstrip(",")
    assert kind in {found.kind for found in report.findings}
    await ward.doctor.mend(report)
    mended = [found for found in report.findings if (found.kind, found.subject) in report.mended]
    assert kind in {found.kind for found in mended}
    after = await ward.examine()
    assert not [found for found in after.findings if found.kind != "wrong_type"]
    open_jobs = await ward.client.hvals(keys.open_jobs(QUEUE))
    assert await ward.backlog() == sum(map(int, open_jobs))


async def test_after_mending_every_job_still_comes_to_its_outcome(ward: Ward) -> None:
    unlisted = await ward.accept(3)
    await _unlist(ward, unlisted)
    await ward.client.hincrby(keys.BACKLOG, QUEUE, -1)
    damaged = await ward.accept(2)
    await ward.client.hdel(keys.batch(damaged), "data")
    await ward.doctor.mend(await ward.examine())
    await ward.finish(unlisted)
    for batch_id, statuses in ((unlisted, ["succeeded"] * 3), (damaged, ["failed"] * 2)):
        stored = await ward.client.hget(keys.batch(batch_id), "out")
        assert isinstance(stored, bytes)
        assert [job.status for job in wire.decode_outcome(stored).jobs] == statuses
    assert await ward.backlog() == 6


async def test_the_worker_that_came_back_keeps_its_batch(ward: Ward) -> None:
    batch_id = await ward.accept()
    await ward.claim(batch_id, "late")
    report = await ward.examine()
    assert [found.kind for found in report.findings] == ["dead_claim"]
    await ward.publish("late")
    await ward.doctor.mend(report)
    assert not report.mended
    assert await ward.client.hget(keys.running(QUEUE), batch_id) == b"late"


async def test_what_it_does_not_know_is_reported_and_left_alone(ward: Ward) -> None:
    await ward.client.set("modelyard:surprise", "?")
    await ward.client.set(keys.running(keys.queue_name("Another", 1)), "?")
    await ward.client.hdel(keys.batch(ward.batches[0].batch_id), "head")
    for _ in range(2):
        report = await ward.examine()
        assert {found.kind for found in report.findings} == {
            "unknown_key",
            "wrong_type",
            "outcome_without_job",
        }
        await ward.doctor.mend(report)
        assert not report.mended


async def test_a_queue_whose_workers_serve_two_models_is_reported_with_both(ward: Ward) -> None:
    await ward.publish("replica", host="alpha", model_id="m-1")  # the run is that of the older record
    assert (await ward.examine()).is_healthy
    await ward.publish("stranger", host="beta", model_id="m-2", run_id="another")
    [found] = (await ward.examine()).findings
    assert (found.kind, found.subject) == ("mixed_models", QUEUE)
    assert "m-2, run another" in found.detail
    assert found.kind not in ward.doctor.mends


async def test_messages_of_batches_that_are_gone_are_no_finding_where_a_worker_takes_them(ward: Ward) -> None:
    await ward.client.lpush(QUEUE, ward.messages.write("0" * 32))
    report = await ward.examine()
    assert report.is_healthy
    assert [note for note in report.notes if "messages of deleted batches" in note]


async def test_what_looks_odd_for_a_moment_is_not_reported(ward: Ward) -> None:
    batch_id = await ward.accept()
    await ward.claim(batch_id, "dying")

    async def scans() -> int:
        return int((await ward.client.info("commandstats")).get("cmdstat_scan", {}).get("calls", 0))

    before = await scans()

    async def take_over() -> None:
        while await scans() < before + 2:
            pass  # each look begins with one: at the second one, the oddity was seen
        await ControllerLedger(ward.client, RETENTION_S).requeue(batch_id, QUEUE, "dying", b"again")

    mending = asyncio.create_task(take_over())
    report = await ward.doctor.examine(30)
    await mending
    assert report.is_healthy
    assert report.looks > 1


async def test_a_healthy_pool_is_looked_at_once_and_a_large_one_in_bounded_pieces(ward: Ward) -> None:
    for _ in range(700):
        await ward.accept(1)
    report = await ward.doctor.examine(patience_s(Settings()))
    assert report.is_healthy
    assert report.looks == 1
    assert report.counts["keys modelyard:batch:"] == 704


def test_every_kind_that_can_be_mended_is_tested(redis_server: RedisServer) -> None:
    doctor = Doctor(redis.asyncio.Redis.from_url(redis_server.url), Settings(redis_url=redis_server.url))
    tested = {what.split()[0].rstrip(",") for what in BROKEN}
    assert set(doctor.mends) == tested
