"""Redis comes back without what it confirmed last: every job answered 202 still ends in one outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest
import redis
import redis.asyncio

from app.fsck.consistency_check import Doctor
from app.ledger.wire import CANCELLED, JobOutcome
from app.redis import keys
from app.redis.client import connect
from controller.recovery import replay_buffer
from tests.controller.conftest import (
    HandWorker,
    OwnRedis,
    Serve,
    Served,
    nothing_is_queued,
    serving,
    settings_for,
    until,
)
from tests.pool_samples import outcome, record

HandWorkers = Callable[..., HandWorker]
ServeOwn = Callable[..., Awaitable[Served]]
PATIENCE_S = 0.05


@pytest.fixture
async def worker(own_redis: OwnRedis) -> AsyncIterator[HandWorker]:
    """A worker played by hand, on a Redis that has its data copied with that worker in it and no job."""
    await until(own_redis.answers, "Redis answers")
    # So that the copy has all that was confirmed before it.
    own_redis.client.config_set("appendfsync", "always")
    with connect(settings_for(own_redis.url)) as client:
        played = HandWorker(client, record(1))
        played.start()
        own_redis.remember()
        yield played


@pytest.fixture
async def serve_own(worker: HandWorker, own_redis: OwnRedis) -> AsyncIterator[ServeOwn]:
    """`await serve_own(**settings)` opens another controller on that Redis."""
    async with AsyncExitStack() as stack:

        async def start(**fields: Any) -> Served:
            return await stack.enter_async_context(serving(settings_for(own_redis.url, **fields)))

        yield start


async def read(served: Served, url: str) -> httpx.Response:
    """The job as soon as it is not answered 503. It must not be unknown meanwhile."""
    while (answer := await served.http.get(url)).status_code == 503:
        assert answer.json()["code"] == "ledger_unavailable"
        assert int(answer.headers["retry-after"]) >= 1
        await asyncio.sleep(0.01)
    return answer


async def accepted(served: Served, **headers: str) -> str:
    """Have a job accepted, in a batch of its own, and return where it is read."""
    answer = await served.post(**headers)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


async def is_healthy(own_redis: OwnRedis) -> bool:
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        report = await Doctor(client, settings_for(own_redis.url)).examine(PATIENCE_S)
    # That Redis was set back is noted, and stays true after the controllers have written again what it lost.
    return {finding.kind for finding in report.findings} <= {"data_lost"}


async def finish_all(worker: HandWorker, n_batches: int) -> list[str]:
    """Run batches until `n_batches` have an outcome, and return their ids."""
    done: list[str] = []
    while len(done) < n_batches:
        batch = await worker.claimed()
        result = outcome(len(batch.head.jobs), worker.record.worker_id)
        jobs = [CANCELLED if index in batch.cancelled else job for index, job in enumerate(result.jobs)]
        assert worker.finish(batch, msgspec.structs.replace(result, jobs=jobs))
        done.append(batch.batch_id)
    return done


async def test_what_redis_lost_ends_in_one_outcome_each_and_cancels_stay(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    served, other = await serve_own(), await serve_own()
    urls = [await accepted(each) for each in (served, other, served)]
    named = await accepted(served, idempotency_key="abc")
    cancelled = [await accepted(served), await accepted(other)]
    for url in cancelled:  # by the controller that accepted it, and by another
        assert (await served.http.delete(url)).json()["status"] == "cancelled"
    await own_redis.set_back()
    for url in (*urls, named):
        assert (await read(other, url)).json()["status"] == "queued"
    await until(lambda: own_redis.client.hget(keys.BACKLOG, worker.record.queue) == b"4", "four are open")
    for url in cancelled:
        assert (await read(other, url)).json()["status"] == "cancelled"
    repeated = await served.post(idempotency_key="abc")
    assert repeated.headers["location"] == named
    done = await finish_all(worker, 6)
    assert len(set(done)) == 6
    assert {(await read(other, url)).json()["status"] for url in (*urls, named)} == {"succeeded"}
    assert {(await read(other, url)).json()["status"] for url in cancelled} == {"cancelled"}
    assert own_redis.client.hget(keys.BACKLOG, worker.record.queue) == b"0"
    assert worker.claim() is None
    assert await is_healthy(own_redis)


@pytest.mark.parametrize("survives", ["nothing", "the batch without its outcome"])
async def test_an_outcome_that_was_announced_and_lost_is_there_again_and_nothing_runs_twice(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn, survives: str
) -> None:
    served = await serve_own()
    await until(lambda: own_redis.client.pubsub_channels(), "the controller listens")
    url = await accepted(served)
    if survives != "nothing":
        own_redis.remember()
    [batch_id] = await finish_all(worker, 1)
    await until(lambda: not served.services.dispatcher.sent, "the outcome is heard")
    before = (await served.http.get(url)).content
    await own_redis.set_back()
    await until(lambda: own_redis.client.hexists(keys.batch(batch_id), "out"), "the outcome is there")
    assert (await read(served, url)).content == before
    assert worker.claim() is None
    assert own_redis.client.hget(keys.BACKLOG, worker.record.queue) == b"0"
    assert await is_healthy(own_redis)


async def test_a_worker_that_held_a_lost_batch_cannot_finish_it_and_it_runs_again(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    served = await serve_own()
    url = await accepted(served)
    batch = await worker.claimed()
    await own_redis.set_back()
    assert (await read(served, url)).json()["status"] == "queued"
    assert not worker.finish(batch)
    assert await finish_all(worker, 1) == [batch.batch_id]
    assert (await read(served, url)).json()["status"] == "succeeded"


async def test_who_waits_for_a_job_that_redis_lost_gets_its_outcome(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    served = await serve_own()
    post = asyncio.create_task(served.post(query="?wait=20"))
    await until(lambda: own_redis.client.llen(worker.record.queue), "the job is accepted")
    batch_id = await until(lambda: next(iter(served.services.dispatcher.sent), None), "it is sent")
    await until(lambda: batch_id in served.services.replay_buffer, "its acceptance is confirmed")
    await own_redis.set_back()
    await until(lambda: own_redis.client.pubsub_channels(), "the controller listens")
    await finish_all(worker, 1)
    assert (await post).json()["status"] == "succeeded"


async def test_redis_lost_again_before_it_wrote_what_was_written_again_loses_nothing(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    served = await serve_own()
    url = await accepted(served)
    for _ in range(3):
        await own_redis.set_back()
        assert (await read(served, url)).json()["status"] == "queued"
    await finish_all(worker, 1)
    assert (await read(served, url)).json()["status"] == "succeeded"


async def test_a_job_is_not_unknown_before_its_controller_has_written_it_again(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    late = await serve_own(heartbeat_s=30)  # notices by itself long after it is asked
    async with serving(settings_for(own_redis.url)) as doomed:
        url = await accepted(doomed)
    await own_redis.set_back()
    answer = await late.http.get(url)
    assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
    assert "may replay" in answer.json()["detail"]


async def test_a_job_that_nobody_is_left_to_write_again_is_unknown_once_redis_has_settled(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    other = await serve_own()
    async with serving(settings_for(own_redis.url)) as doomed:
        url = await accepted(doomed)
    await own_redis.set_back()
    assert (await read(other, url)).json()["code"] == "job_unknown"


async def test_copies_are_kept_while_redis_is_away_and_only_then_for_longer_than_they_must_be(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = await serve_own(redis_timeout_s=0.2)
    url = await accepted(served)
    own_redis.kill()
    monkeypatch.setattr(replay_buffer, "KEEP_S", 0.05)
    await until(lambda: not served.services.watcher.reachable, "the controller has noticed")
    await asyncio.sleep(0.1)
    await own_redis.set_back()
    assert (await read(served, url)).json()["status"] == "queued"
    batch_id = url.removeprefix("/results/").partition(".")[0]
    await until(lambda: batch_id not in served.services.replay_buffer, "Redis must have written it by now")


async def test_what_was_finished_and_has_expired_is_not_written_again(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_buffer, "KEEP_S", 60)
    retention_s = 0.2
    served = await serve_own(result_retention_s=retention_s)
    await until(lambda: own_redis.client.pubsub_channels(), "the controller listens")
    heard, unheard = await accepted(served), await accepted(served)
    [done] = await finish_all(worker, 1)
    await until(lambda: done not in served.services.dispatcher.sent, "the outcome is heard")
    lost = await worker.claimed()
    await until(lambda: lost.batch_id in served.services.replay_buffer, "its acceptance is confirmed")
    over_at_s = time.monotonic() + retention_s
    await until(lambda: time.monotonic() > over_at_s, "no outcome of these jobs would be kept any longer")
    await served.services.watcher.refresh()  # Redis answers after that time
    own_redis.client.delete(keys.batch(done), keys.batch(lost.batch_id))  # as when they expire
    await own_redis.set_back()
    await until(lambda: served.services.watcher.has_just_come_back, "the controller has noticed")
    await until(lambda: not served.services.watcher.has_just_come_back, "it has written again what it would")
    for url in (heard, unheard):
        assert (await read(served, url)).status_code == 410
    assert nothing_is_queued(own_redis.client)


async def test_a_quarantined_job_whose_outcome_is_lost_comes_to_it_again_with_its_samples(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    served = await serve_own()
    await until(lambda: own_redis.client.pubsub_channels(), "the controller listens")
    url = await accepted(served)
    batch = await worker.claimed()
    failed = JobOutcome("failed", error_code="job_quarantined", error_detail="its worker died")
    result = outcome(1, worker.record.worker_id, jobs=[failed])
    assert worker.finish(batch, result, {0: batch.data})
    await until(lambda: not served.services.dispatcher.sent, "the outcome is heard")
    await own_redis.set_back()
    assert (await read(served, url)).json()["status"] == "queued"
    again = await worker.claimed()
    assert (again.batch_id, again.data) == (batch.batch_id, batch.data)


async def test_a_full_redis_takes_what_it_had_accepted_and_lost(
    own_redis: OwnRedis, worker: HandWorker, serve_own: ServeOwn
) -> None:
    served = await serve_own()
    own_redis.remember()  # with the secret, which a full Redis would not take
    url = await accepted(served)
    own_redis.options = ["--maxmemory", "1mb"]
    await own_redis.set_back()
    assert (await read(served, url)).json()["status"] == "queued"
    await until(lambda: served.services.link.is_connected, "batches can be sent")
    assert (await served.post()).json()["code"] == "ledger_full"


async def test_nothing_is_kept_of_jobs_whose_callers_all_have_their_outcome(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    await until(lambda: client.pubsub_channels(), "the controller listens")
    posts = [asyncio.create_task(served.post(query="?wait=5"))]
    batch = await worker.claimed()
    await until(lambda: batch.batch_id in served.services.replay_buffer, "its acceptance is confirmed")
    worker.finish(batch)
    assert [(await post).status_code for post in posts] == [200]
    assert batch.batch_id not in served.services.replay_buffer


async def test_past_the_limit_the_oldest_copies_are_dropped(
    serve: Serve, hand_worker: HandWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_worker()
    served = await serve(batches_ahead=64)
    monkeypatch.setattr(replay_buffer, "LIMIT_BYTES", 3.6 * replay_buffer.OVERHEAD_BYTES)
    urls = [await accepted(served) for _ in range(5)]
    batch_ids = [url.removeprefix("/results/").partition(".")[0] for url in urls]
    buffer = served.services.replay_buffer
    await until(lambda: batch_ids[-1] in buffer, "the last acceptance is noted")
    assert [batch_id in buffer for batch_id in batch_ids] == [False, False, True, True, True]


@pytest.mark.parametrize("n_controllers", [1, 2])
async def test_a_worker_number_is_unknown_only_once_an_emptied_redis_has_settled(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, n_controllers: int
) -> None:
    hand_worker()
    served = [await serve(batches_ahead=64) for _ in range(n_controllers)]
    client.flushall()
    for each in served:
        seen = []
        while (answer := await each.post(query="?worker=1")).status_code != 404:
            seen.append(answer.status_code)
            assert answer.status_code == 202 or "retry-after" in answer.headers
            await asyncio.sleep(0.01)
        assert answer.json()["code"] == "worker_unknown"
        assert set(seen) <= {202, 503}
    assert 503 in seen or n_controllers == 2  # the second one may have settled while the first was asked
