"""Real workers whose queue is never empty: what they owe to others then, to Flower, to replicas and to SIGTERM."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from multiprocessing.synchronize import Event

import pytest
import redis
from celery import Celery

from app.celery_app import create_celery
from app.ledger import wire
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.redis import keys
from app.settings import Settings
from tests.pool_samples import RedisServer, accept_now, new_batch
from tests.workers.worker_processes import QUEUE, Start, records

WaitUntil = Callable[..., None]
AT_LEAST_WAITING = 100
FED_AHEAD = 4000  # what a worker takes in three seconds: the feeder may be slower than it where cores are few
N_EVENTS = 200
ANSWER_S = 5.0


@cache
def template() -> bytes:
    return write_template(create_celery(Settings(redis_url="redis://unused")))


def accept_many(url: str, count: int) -> list[str]:
    """Accept batches of two jobs for version 1, exactly as a controller does."""
    messages = WakeUpMessages(template(), QUEUE)
    made = [new_batch(2, queue=QUEUE, model_name="Scikit", dtype="float64") for _ in range(count)]
    accept_now(url, *[replace(each, message=messages.write(each.batch_id)) for each in made])
    return [each.batch_id for each in made]


def feed(url: str, has_begun: Event, stop: Event) -> None:
    with redis.Redis.from_url(url) as client:
        while not stop.is_set():
            if client.llen(QUEUE) < FED_AHEAD:
                accept_many(url, AT_LEAST_WAITING)
            else:
                has_begun.set()
                stop.wait(0.05)


@contextmanager
def never_empty(url: str) -> Iterator[None]:
    """Keep many batches on the queue, however fast they are taken. To be entered before a worker starts."""
    spawn = multiprocessing.get_context("spawn")
    has_begun, stop = spawn.Event(), spawn.Event()
    feeder = spawn.Process(target=feed, args=(url, has_begun, stop), daemon=True)
    feeder.start()
    try:
        assert has_begun.wait(60)
        yield
    finally:
        stop.set()
        feeder.join(30)


def ready(client: redis.Redis) -> set[str]:
    """Ids of the workers that are ready."""
    return {record.worker_id for record in records(client) if record.state == "ready"}


def workers_of(client: redis.Redis, batches: list[str]) -> dict[str, str]:
    """Which worker ran which batch, of those that have their outcome."""
    stored = {batch: client.hget(keys.batch(batch), "out") for batch in batches}
    return {
        batch: wire.decode_outcome(out).worker_id for batch, out in stored.items() if isinstance(out, bytes)
    }


@pytest.fixture
def celery(redis_server: RedisServer) -> Iterator[Celery]:
    made = create_celery(Settings(redis_url=redis_server.url))
    yield made
    made.close()


def test_a_worker_whose_queue_is_never_empty_answers_flower_and_leaves_the_rest_when_told_to_stop(
    start_worker: Start, redis_server: RedisServer, celery: Celery, wait_until: WaitUntil
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        accepted = accept_many(redis_server.url, 100)
        with never_empty(redis_server.url):
            worker = start_worker("1")
            wait_until(lambda: ready(client), timeout_s=60, what="the worker is ready")
            pids = [record.pid for record in records(client)]
            inspect = celery.control.inspect(timeout=ANSWER_S, limit=1)
            wait_until(inspect.ping, timeout_s=60, what="it hears remote commands")
            for _ in range(3):
                assert [answer["ok"] for answer in inspect.ping().values()] == ["pong"]
                assert [answer["pid"] for answer in inspect.stats().values()] == pids
                assert client.llen(QUEUE) > 0
            wait_until(lambda: workers_of(client, accepted), what="some are run")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
        pending = client.zrange(keys.pending(QUEUE), 0, -1)
        assert not client.hgetall(keys.running(QUEUE))
        assert client.llen(QUEUE) == len(pending) > 0
        attempted = [batch for batch in pending if client.hexists(keys.batch(batch.decode()), "attempts")]
        assert attempted == []


def test_flower_hears_of_every_batch_as_a_task_and_a_second_replica_shares_the_backlog(
    start_worker: Start, redis_server: RedisServer, celery: Celery, wait_until: WaitUntil
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        start_worker("1")
        wait_until(lambda: ready(client), timeout_s=60, what="the worker is ready")
        every_batch_is_heard_of_in_order(celery, redis_server.url)
        start_worker("1")
        wait_until(lambda: len(ready(client)) == 2, timeout_s=60, what="both are ready")
        accepted: list[str] = []

        def both_ran_some() -> bool:
            accepted.extend(accept_many(redis_server.url, AT_LEAST_WAITING))
            return len(set(workers_of(client, accepted).values())) == 2

        wait_until(both_ran_some, what="both have run some")
        wait_until(lambda: len(workers_of(client, accepted)) == len(accepted), what="all are run")
        attempts = {client.hget(keys.batch(batch), "attempts") for batch in accepted}
        assert attempts == {b"1"}


def every_batch_is_heard_of_in_order(celery: Celery, url: str) -> None:
    """Celery's events tell of each batch that it was received, started and succeeded; first in, first out."""
    heard: dict[str, list[str]] = defaultdict(list)
    accepted: list[str] = []
    give_up_at_s = time.monotonic() + 30

    def hear(event: dict[str, str]) -> None:
        # The first is a heartbeat: only now has the receiver subscribed, though Celery called it ready before.
        if not accepted:
            accepted.extend(accept_many(url, N_EVENTS))
        elif event["type"].startswith("task-"):
            heard[event["uuid"]].append(event["type"])
        has_all = sum(map(len, heard.values())) == 3 * N_EVENTS
        receiver.should_stop = has_all or time.monotonic() > give_up_at_s

    with celery.connection() as connection:
        receiver = celery.events.Receiver(connection, handlers={"*": hear})
        receiver.capture(timeout=20, wakeup=False)
    assert heard == {batch: ["task-received", "task-started", "task-succeeded"] for batch in accepted}
    assert list(heard) == accepted
