"""Garbage wherever a controller reads: it is counted and logged once, and requests go on being answered."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis

from app.contract import TensorContract
from app.ledger import wire
from app.redis import keys
from app.worker_record import encode_record
from tests.controller.conftest import HandWorker, Serve, Served, until
from tests.pool_samples import MODEL, head, new_batch, now_ms, outcome, record

HandWorkers = Callable[..., HandWorker]
QUEUE = head().queue
BATCH = "B" * 32
KINDS = {"pool_entry", "worker_record", "notice"}


def mutations(good: bytes, lottery: random.Random) -> Iterator[bytes]:
    """Endlessly other bytes, many of them nearly right."""
    while True:
        spoilt = bytearray(good)
        for _ in range(lottery.randint(1, 4)):
            spoilt[lottery.randrange(len(spoilt))] = lottery.randrange(256)
        yield bytes(spoilt)
        yield good[: lottery.randrange(len(good))]
        yield lottery.randbytes(lottery.randrange(40))


def soil(client: redis.Redis, lottery: random.Random) -> None:
    """Put garbage everywhere but where the good worker and its queue are read."""
    live = now_ms() + 3_600_000
    records = mutations(encode_record(record(7)), lottery)
    notices = mutations(BATCH.encode() + wire.encode(outcome()), lottery)
    heads = mutations(wire.encode(head()), lottery)
    for i in range(40):
        name = f"soiled-{i}"
        client.zadd(keys.WORKERS, {name: live})
        client.zadd(keys.WORKERS, {lottery.randbytes(9): live})
        client.set(keys.worker(name), next(records))
        client.hset(keys.NUMBERS, lottery.randbytes(9), lottery.randbytes(3))
        client.hset(keys.BACKLOG, lottery.randbytes(9), lottery.randbytes(3))
        client.hset(keys.running(QUEUE), lottery.randbytes(32), lottery.randbytes(9))
        client.zadd(keys.pending(QUEUE), {lottery.randbytes(32): i})
        client.zadd(keys.deadlines(QUEUE), {lottery.randbytes(32): i})
        batch_id = new_batch(2).batch_id
        client.hset(keys.batch(batch_id), "head", next(heads))
        client.zadd(keys.deadlines(QUEUE), {batch_id: i})
        client.publish(client.pubsub_channels(keys.reply_channel("*"))[0], next(notices))
        client.publish(keys.POOL_CHANNEL, lottery.randbytes(9))


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_controller_among_garbage_serves_on_and_counts_it(
    serve: Serve,
    hand_worker: HandWorkers,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    seed: int,
) -> None:
    worker = hand_worker()
    served = await serve()
    await until(lambda: client.pubsub_channels(), "the controller listens")
    soil(client, random.Random(seed))
    counts = served.services.metrics.exposition
    none = [f'modelyard_unreadable_total{{what="{kind}"}} 0.0' for kind in KINDS]
    await until(lambda: not any(each in counts().decode() for each in none), "each kind is counted")
    url = (await served.post(query="?worker=1")).headers["location"]
    while (batch := await worker.claimed()).batch_id not in url:
        pass
    worker.finish(batch)
    assert (await served.http.get(f"{url}?wait=5")).json()["status"] == "succeeded"
    assert (await served.http.get("/workers")).status_code == 200
    await until(lambda: not client.exists(keys.deadlines(QUEUE), keys.pending(QUEUE)), "all are closed")
    assert "Traceback" not in caplog.text
    assert caplog.text.count("unreadable notice") == 1


@pytest.mark.parametrize(
    "nonsense",
    [
        {"queue": keys.queue_name(MODEL, 9)},
        {"queue": "modelyard:queue:a:b:1", "model_name": "a:b", "model_version": 1},
        {"input": TensorContract("object", (2,))},
        {"input": TensorContract("float32", (0,))},
        {"input": TensorContract("float32", (-1, 2))},
    ],
    ids=str,
)
async def test_a_worker_record_that_makes_no_sense_is_left_out(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, nonsense: dict[str, object]
) -> None:
    worker = hand_worker()
    client.set(
        keys.worker(worker.record.worker_id),
        encode_record(msgspec.structs.replace(worker.record, **nonsense)),
    )
    served = await serve()
    assert served.services.watcher.view.records == ()
    assert 'what="worker_record"} 1.0' in served.services.metrics.exposition().decode()


async def test_keys_of_another_kind_stop_neither_the_controller_nor_the_other_queues(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    worker = hand_worker()
    served = await serve()
    broken = keys.queue_name("Another", 1)
    client.hset(keys.BACKLOG, broken, 1)
    for name in (keys.running(broken), keys.pending(broken), keys.deadlines(broken), broken):
        client.set(name, "not what it should be")
    answer = await served.post(query="?deadline=0.3&wait=5")
    assert answer.json()["status"] == "expired"
    assert worker.record.queue
    await until(lambda: "unreadable pool entry" in caplog.text, "it is logged")
    client.rename(keys.NUMBERS, "aside")
    client.set(keys.NUMBERS, "not a hash")
    before = _pool_entries(served)
    await until(lambda: _pool_entries(served) > before, "it is counted")
    client.rename("aside", keys.NUMBERS)
    assert (await served.post()).status_code == 202


def _pool_entries(served: Served) -> float:
    exposed = served.services.metrics.exposition().decode()
    line = next(
        line
        for line in exposed.splitlines()
        if line.startswith('modelyard_unreadable_total{what="pool_entry"')
    )
    return float(line.split()[-1])
