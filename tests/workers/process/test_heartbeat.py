"""A worker's record: there from the start, renewed, changed at once, expiring by itself, taken away at the end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest
import redis

from app.clock import PoolClock
from app.redis import keys
from app.worker_record import WorkerRecord, decode_record
from tests.pool_samples import RedisServer, publish, record
from workers.process import consumer_progress
from workers.process.heartbeat import Heartbeat

WaitUntil = Callable[..., None]


def published(client: redis.Redis) -> WorkerRecord | None:
    stored = client.get(keys.worker("host-1"))
    return decode_record(stored) if isinstance(stored, bytes) else None


def test_a_record_is_published_at_once_renewed_and_expires_after_three_heartbeats(
    client: redis.Redis, wait_until: WaitUntil
) -> None:
    heartbeat = Heartbeat(client, record(state="starting", started_at_ms=0), PoolClock(), 0.1)
    heartbeat.start()
    first = published(client)
    assert first
    assert first.state == "starting"
    assert first.started_at_ms > 0
    assert 0 < client.pttl(keys.worker("host-1")) <= 300
    assert client.zscore(keys.WORKERS, "host-1")

    def renewed() -> bool:
        now = published(client)
        return now is not None and now.heartbeat_at_ms > first.heartbeat_at_ms

    wait_until(renewed, what="the record is renewed")
    heartbeat.close()


def test_a_change_of_state_is_published_and_announced_at_once(
    client: redis.Redis, wait_until: WaitUntil
) -> None:
    pubsub = client.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(keys.POOL_CHANNEL)
    pubsub.get_message(timeout=1)
    heartbeat = Heartbeat(client, record(state="starting"), PoolClock(), 60)
    heartbeat.start()
    heartbeat.set_state("ready")
    wait_until(lambda: (now := published(client)) and now.state == "ready", what="it is ready")
    message = pubsub.get_message(timeout=5)
    assert message
    assert message["data"] == b"host-1"
    heartbeat.close()
    pubsub.close()


def test_the_record_of_a_dead_predecessor_stays_until_its_successor_is_ready(
    client: redis.Redis, wait_until: WaitUntil
) -> None:
    publish(client, record(worker_id="dead"))
    heartbeat = Heartbeat(client, record(state="starting"), PoolClock(), 60, predecessor="dead")
    heartbeat.start()
    assert client.exists(keys.worker("dead"))
    heartbeat.set_state("ready")
    wait_until(lambda: not client.exists(keys.worker("dead")), what="the dead one's record is gone")
    assert client.zrange(keys.WORKERS, 0, -1) == [b"host-1"]
    now = published(client)
    assert now
    assert now.state == "ready"
    heartbeat.close()


def test_a_closed_heartbeat_leaves_nothing_behind(client: redis.Redis) -> None:
    heartbeat = Heartbeat(client, record(), PoolClock(), 60)
    heartbeat.start()
    heartbeat.close()
    assert published(client) is None
    assert client.zcard(keys.WORKERS) == 0


def test_a_heartbeat_can_be_closed_while_redis_is_away(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url, socket_timeout=0.2) as connection:
        heartbeat = Heartbeat(connection, record(), PoolClock(), 60)
        heartbeat.start()
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            heartbeat.close()
        finally:
            redis_server.process.send_signal(signal.SIGCONT)


def test_the_running_batch_is_named_until_it_ends(client: redis.Redis, wait_until: WaitUntil) -> None:
    heartbeat = Heartbeat(client, record(), PoolClock(), 0.05)
    heartbeat.start()
    heartbeat.batch_started("batch")
    wait_until(lambda: (now := published(client)) and now.running_batch == "batch", what="it is named")
    heartbeat.batch_ended(done=2, failed=1, n_samples=3, inference_ms=4.0)
    wait_until(lambda: (now := published(client)) and now.running_batch == "", what="it is named no more")
    now = published(client)
    heartbeat.close()
    assert now
    assert (now.jobs_done, now.jobs_failed, now.batch_samples_mean, now.inference_ms.last) == (2, 1, 3.0, 4.0)


def test_a_version_that_turns_slow_or_fast_says_so_after_a_few_passes(
    client: redis.Redis, wait_until: WaitUntil
) -> None:
    heartbeat = Heartbeat(client, record(), PoolClock(), 0.05)
    heartbeat.start()
    seen: list[WorkerRecord] = []
    for pass_ms, count in ((1.0, 500), (900.0, 1), (900.0, 2), (1.0, 3)):
        for _ in range(count):
            heartbeat.batch_ended(1, 0, 1, pass_ms)
        done = count + (seen[-1].batches_done if seen else 0)
        wait_until(lambda done=done: (now := published(client)) and now.batches_done == done)
        now = published(client)
        assert now
        seen.append(now)
    heartbeat.close()
    assert [each.recent_pass_ms for each in seen] == [1.0, 1.0, 900.0, 1.0]


def test_a_worker_asks_for_its_number_again_where_redis_has_lost_it(
    client: redis.Redis, wait_until: WaitUntil
) -> None:
    own = record(worker=3)
    heartbeat = Heartbeat(client, own, PoolClock(), 0.05)
    heartbeat.start()
    client.flushall()
    wait_until(lambda: client.hget(keys.NUMBERS, own.queue) == b"3", what="its number is known")
    with client.pipeline() as pipe:
        pipe.flushall()
        pipe.hset(keys.NUMBERS, "modelyard:queue:Other:1", "3")
        pipe.execute()
    wait_until(lambda: client.hget(keys.NUMBERS, own.queue) == b"1", what="it has another number")
    heartbeat.close()


def test_a_worker_whose_consumer_asks_for_nothing_any_more_is_ended(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_progress, "STALLED_S", 0.5)
    ended = threading.Event()
    heartbeat = Heartbeat(client, record(), PoolClock(), 0.02, on_stall=ended.set)
    heartbeat.start()
    for _ in range(20):  # longer than the limit, and well
        heartbeat.progress.note()
        assert not ended.wait(0.03)
    heartbeat.batch_started("a long one")
    assert not ended.wait(0.8)
    heartbeat.batch_ended(1, 0, 1, 1.0)
    assert ended.wait(10)
    assert published(client) is None
    heartbeat.close()


def test_a_process_that_was_paused_as_a_whole_has_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer_progress, "STALLED_S", 0.2)
    idle = consumer_progress.Progress(heartbeat_s=0.01)
    time.sleep(0.5)  # nobody looks meanwhile
    assert not idle.has_stalled()
    give_up_at_s = time.monotonic() + 10
    while not idle.has_stalled():
        assert time.monotonic() < give_up_at_s
        time.sleep(0.01)
