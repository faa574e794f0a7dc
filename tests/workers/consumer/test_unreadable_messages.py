"""Garbage on the queue and on Celery's channels, with a real worker: all of it is dropped, all good jobs succeed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from app.celery_app import create_celery
from app.ledger import wire
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.redis import keys
from app.settings import Settings
from app.worker_record import WorkerRecord, decode_record
from tests.pool_samples import RedisServer
from tests.workers.worker_processes import LIGHT, LIGHT_MODEL, LIGHT_QUEUE, Start, accept
from workers.consumer.transport import is_wake_up

WaitUntil = Callable[..., None]
N_GARBAGE = 200
N_GOOD = 20
GOOD_ID = "B" * 32


def garbage(good: dict[str, Any]) -> Iterator[bytes]:
    """Endlessly other bytes: none of them a wake-up."""
    headers, properties = good["headers"], good["properties"]
    shaped: list[Any] = [
        None,
        [],
        7,
        "text",
        {},
        {**good, "headers": None},
        {**good, "headers": [1]},
        {**good, "headers": {**headers, "id": None}},
        {**good, "headers": {**headers, "id": {"a": 1}}},
        {**good, "headers": {**headers, "id": "short"}},
        {**good, "headers": {**headers, "task": "celery.chord"}},
        {**good, "headers": {**headers, "task": ["a"]}},
        {name: value for name, value in good.items() if name != "headers"},
        {**good, "headers": {name: value for name, value in headers.items() if name != "id"}},
        {**good, "headers": {name: value for name, value in headers.items() if name != "task"}},
        {name: value for name, value in good.items() if name != "properties"},
        {**good, "properties": {name: value for name, value in properties.items() if name != "delivery_tag"}},
        {**good, "properties": {**properties, "body_encoding": "nonsense"}, "body": 7},
    ]
    lottery = random.Random(0)
    while True:
        yield from (json.dumps(each).encode() for each in shaped)
        yield lottery.randbytes(lottery.randrange(1, 300))
        yield b"[" * 100_000
        yield b'{"headers": ' + lottery.randbytes(20)
        yield b""


@pytest.fixture
def good(redis_server: RedisServer) -> dict[str, Any]:
    """A message as a controller writes it, for a batch that does not exist."""
    template = write_template(create_celery(Settings(redis_url=redis_server.url)))
    made: dict[str, Any] = json.loads(WakeUpMessages(template, LIGHT_QUEUE).write(GOOD_ID))
    return made


def test_a_message_as_a_controller_writes_it_is_a_wake_up_and_garbage_is_none(good: dict[str, Any]) -> None:
    assert is_wake_up(good)
    garbage: list[Any] = [{}, [], None, {"headers": {"task": "os.system", "id": GOOD_ID}}]
    for other in garbage:
        assert not is_wake_up(other)


def record_of(client: redis.Redis) -> WorkerRecord | None:
    """The one worker's record."""
    found = [client.get(name) for name in client.scan_iter(keys.worker("*"))]
    return decode_record(found[0]) if found and isinstance(found[0], bytes) else None


def test_garbage_between_good_jobs_is_dropped_and_counted_by_the_same_worker(
    start_worker: Start, redis_server: RedisServer, good: dict[str, Any], wait_until: WaitUntil
) -> None:
    worker = start_worker("1", **LIGHT)
    bytes_of = garbage(good)
    batches = []
    with redis.Redis.from_url(redis_server.url) as client:
        for channel in ("/0.celery.pidbox", "modelyard:pool", "/0.celeryev/worker.heartbeat"):
            client.publish(channel, b"?")
        for i in range(N_GARBAGE):
            client.lpush(LIGHT_QUEUE, next(bytes_of))
            if i % (N_GARBAGE // N_GOOD) == 0:
                batches.append(accept(redis_server.url, LIGHT_MODEL))
        wait_until(lambda: client.hget(keys.batch(batches[-1]), "out"), timeout_s=60, what="the last is run")
        for each in [json.dumps(good), "[]", "{}", json.dumps({"body": 1}), '{"properties": {}}']:
            client.publish("/0.celery.pidbox", each)
        batches.append(accept(redis_server.url, LIGHT_MODEL))
        wait_until(lambda: client.llen(LIGHT_QUEUE) == 0, what="the queue is empty")
        for batch_id in batches:
            wait_until(
                lambda batch=batch_id: client.hget(keys.batch(batch), "out"), what="every batch is run"
            )
            stored = client.hget(keys.batch(batch_id), "out")
            assert isinstance(stored, bytes)
            assert {job.status for job in wire.decode_outcome(stored).jobs} == {"succeeded"}
        wait_until(
            lambda: (record := record_of(client)) and record.unreadable >= N_GARBAGE - N_GARBAGE // 10,
            what="the record counts what was dropped",
        )
        record = record_of(client)
        assert record
        assert record.main_pid == worker.pid
        assert worker.poll() is None
    worker.terminate()
    _, log = worker.communicate(timeout=30)
    assert log.count("unreadable message") == 1
    assert "Connection to broker lost" not in log
