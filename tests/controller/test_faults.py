"""Redis gone and back, messages and workers lost: every accepted job still comes to its outcome."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

import msgspec
import pytest
import redis

from app.ledger import wire
from app.redis import keys
from controller import results
from controller.recovery import reconciler
from tests.controller.conftest import HandWorker, OwnRedis, Serve, serving, settings_for, until
from tests.pool_samples import MODEL, outcome, record

HandWorkers = Callable[..., HandWorker]


async def test_redis_away_is_503_and_the_controller_recovers_without_a_restart(own_redis: OwnRedis) -> None:
    await until(own_redis.answers, "Redis answers")
    worker = HandWorker(own_redis.client, record(1))
    worker.start()
    async with serving(settings_for(own_redis.url, redis_timeout_s=0.5)) as served:
        url = (await served.post()).headers["location"]
        own_redis.kill()
        for answer in (await served.post(), await served.http.get(url), await served.http.get("/workers")):
            assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        await until(lambda: not served.services.watcher.reachable, "the controller has noticed")
        assert "Redis does not answer" in (await served.http.get("/readyz")).json()["reasons"]
        assert (await served.http.get("/healthz")).status_code == 200
        own_redis.start()
        await until(own_redis.answers, "Redis answers again")
        services = served.services
        await until(lambda: services.watcher.reachable and services.link.is_connected, "it has noticed")
        worker.start()
        await services.watcher.refresh()
        assert (await served.post()).status_code == 202


async def test_a_controller_may_start_before_redis_does(own_redis: OwnRedis) -> None:
    await until(own_redis.answers, "Redis answers")
    own_redis.kill()
    async with serving(settings_for(own_redis.url, redis_timeout_s=0.5)) as served:
        assert (await served.http.get("/results/x")).status_code == 503
        assert (await served.post()).status_code == 503
        own_redis.start()
        await until(lambda: served.services.watcher.reachable, "Redis is noticed", timeout_s=10)
        assert (await served.http.get("/results/x")).status_code == 404


async def test_a_message_that_was_lost_is_sent_again(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "UNCLAIMED_GRACE_MS", 50)
    worker = hand_worker()
    served = await serve()
    url = (await served.post()).headers["location"]
    client.delete(worker.record.queue)
    worker.finish(await worker.claimed())
    assert (await served.http.get(url)).json()["status"] == "succeeded"


async def test_a_batch_that_still_waits_in_its_queue_is_not_sent_twice(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "UNCLAIMED_GRACE_MS", 0)
    worker = hand_worker()
    served = await serve()
    await served.post()
    await served.post()
    for _ in range(3):
        await _next_pass(client)
    assert client.llen(worker.record.queue) == 2


async def _next_pass(client: redis.Redis) -> None:
    """Return after the reconciler has renewed its lease once more."""
    before = await until(lambda: max(0, client.pttl(keys.RECONCILER_LEASE)), "the lease is held")
    await until(lambda: client.pttl(keys.RECONCILER_LEASE) < before, "time passes")
    low = client.pttl(keys.RECONCILER_LEASE)
    await until(lambda: client.pttl(keys.RECONCILER_LEASE) > low, "the lease is renewed")


async def test_the_batch_of_a_dead_worker_is_sent_again_and_its_late_outcome_refused(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    dead = hand_worker(1, worker_id="dead")
    served = await serve()
    url = (await served.post()).headers["location"]
    lost = await dead.claimed()
    dead.stop()
    heir = hand_worker(1, worker_id="heir")
    batch = await heir.claimed()
    assert (batch.batch_id, batch.attempts) == (lost.batch_id, 2)
    assert not dead.finish(lost, outcome(worker_id="dead"))
    assert heir.finish(batch)
    assert (await served.http.get(url)).json()["worker_id"] == "heir"


async def test_the_batch_that_a_live_worker_no_longer_reports_is_sent_again(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()  # its record never names the batch that it claims
    served = await serve()
    await served.post()
    first = await worker.claimed()
    assert (await worker.claimed()).batch_id == first.batch_id


async def test_the_batch_that_a_live_worker_reports_is_left_to_it(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    await served.post()
    batch = await worker.claimed()
    worker.record = msgspec.structs.replace(worker.record, running_batch=batch.batch_id)
    worker.start()
    for _ in range(3):
        await _next_pass(client)
    assert client.llen(worker.record.queue) == 0
    assert worker.finish(batch)


async def test_the_batch_of_a_worker_whose_record_is_unreadable_is_left_to_it(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    await served.post()
    batch = await worker.claimed()
    client.set(keys.worker(worker.record.worker_id), b"of a later version")
    for _ in range(3):
        await _next_pass(client)
    assert client.llen(worker.record.queue) == 0
    assert worker.finish(batch)


async def test_a_notice_that_was_lost_is_made_up_for(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "NOTICE_OVERDUE_S", 0.1)
    worker = hand_worker()
    served = await serve()
    await until(lambda: client.pubsub_channels(), "the controller listens")
    post = asyncio.create_task(served.post(query="?wait=5"))
    batch = await worker.claimed()
    head = msgspec.structs.replace(batch.head, reply_to="nobody")
    worker.finish(dataclasses.replace(batch, head=head))
    assert (await post).json()["status"] == "succeeded"


async def test_batches_that_nobody_answers_do_not_keep_others_from_being_looked_up(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "NOTICE_OVERDUE_S", 0.02)
    monkeypatch.setattr(results, "OVERDUE_PER_PASS", 1)
    hand_worker(1, worker_id="silent")
    worker = hand_worker(2, worker_id="busy")
    served = await serve()
    await until(lambda: client.pubsub_channels(), "the controller listens")
    await served.post(query="?worker=1")
    post = asyncio.create_task(served.post(query="?worker=2&wait=5"))
    batch = await worker.claimed()
    head = msgspec.structs.replace(batch.head, reply_to="nobody")
    worker.finish(dataclasses.replace(batch, head=head))
    assert (await post).json()["status"] == "succeeded"


async def test_unreadable_notices_and_outcomes_do_not_stop_the_controller(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "NOTICE_OVERDUE_S", 0.1)
    worker = hand_worker()
    served = await serve()
    url = (await served.post()).headers["location"]
    batch = await worker.claimed()
    client.publish(keys.reply_channel(batch.head.reply_to), b"\xff" * 40)
    worker.finish(batch)
    later = msgspec.structs.replace(outcome(), schema_version=9)
    client.hset(keys.batch(batch.batch_id), "out", wire.encode(later))
    served.services.dispatcher.sent.clear()
    assert (await served.http.get(url)).json()["code"] == "wire_newer"
    post = asyncio.create_task(served.post(query="?wait=5"))
    worker.finish(await worker.claimed())
    assert (await post).json()["status"] == "succeeded"


async def test_an_unreadable_batch_that_no_worker_took_fails_at_its_deadline_and_the_next_is_closed(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    urls = []
    for damage in (b"unreadable", None):
        urls.append((await served.post(query="?deadline=0.5")).headers["location"])
        name = keys.batch(urls[-1].split("/")[-1].split(".")[0])
        if damage:
            client.hset(name, "head", damage)
        else:
            client.set(name, "not a hash")
    last = await served.post(query="?deadline=0.5&wait=5")
    assert last.json()["status"] == "expired"
    await until(lambda: not client.exists(keys.pending(worker.record.queue)), "all are closed")
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"0"
    for url in urls:
        answer = (await served.http.get(url)).json()
        assert (answer["status"], answer["error"]["code"]) == ("failed", "record_unreadable")
        assert (answer["model_name"], answer["worker"], answer["policy"]) == (MODEL, 1, "unknown")


async def test_a_batch_whose_record_is_gone_is_forgotten_with_its_backlog(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "UNCLAIMED_GRACE_MS", 0)
    worker = hand_worker()
    served = await serve()
    job_id = (await served.post()).json()["id"]
    client.delete(keys.batch(job_id.split(".")[0]), worker.record.queue)
    await until(lambda: client.hget(keys.BACKLOG, worker.record.queue) == b"0", "the batch is forgotten")
    assert not client.exists(keys.pending(worker.record.queue))


async def test_one_controller_at_a_time_reconciles_and_another_takes_over(
    serve: Serve, client: redis.Redis
) -> None:
    await serve()
    await serve()
    holder = await until(lambda: client.get(keys.RECONCILER_LEASE), "one holds the lease")
    client.set(keys.RECONCILER_LEASE, b"a controller that died", px=200)
    await until(lambda: client.get(keys.RECONCILER_LEASE) != b"a controller that died", "it is taken over")
    assert holder
