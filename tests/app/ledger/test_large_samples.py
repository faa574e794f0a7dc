"""Samples that are too large for one value: they travel in pieces, and arrive as they were sent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import redis
import redis.asyncio

from app.ledger.commands import LARGE_SAMPLES_BYTES, PIECE_BYTES, Accept, NewBatch
from app.ledger.replay import Replay
from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from tests.pool_samples import RedisServer, accept_now, head, new_batch, outcome

QUEUE = head().queue


def large_batch(n_bytes: int) -> NewBatch:
    data = np.random.default_rng(n_bytes).integers(0, 256, n_bytes, np.uint8).tobytes()
    return replace(new_batch(), data=data)


@pytest.fixture
def worker(client: redis.Redis) -> WorkerLedger:
    return WorkerLedger(client, "host-1", QUEUE, 100.0)


@pytest.mark.parametrize("n_bytes", [PIECE_BYTES, PIECE_BYTES + 1, 10 * PIECE_BYTES, 12 * PIECE_BYTES + 7])
def test_samples_arrive_as_they_were_sent_and_are_removed_with_their_outcome(
    redis_server: RedisServer, client: redis.Redis, worker: WorkerLedger, n_bytes: int
) -> None:
    batch = large_batch(n_bytes)
    record = keys.batch(batch.batch_id)
    accept_now(redis_server.url, batch)
    sizes = [client.hstrlen(record, name) for name in client.hkeys(record) if name != b"head"]
    assert sum(sizes) == n_bytes
    assert max(sizes) <= PIECE_BYTES
    assert min(sizes) >= LARGE_SAMPLES_BYTES
    claimed = worker.claim(batch.batch_id)
    assert claimed
    assert claimed.data == batch.data
    assert worker.finish(claimed, outcome())
    assert not {b"data", b"p:0", b"p:1"} & set(client.hkeys(record))


async def test_pieces_that_a_loss_left_do_not_mix_with_the_samples_that_come_again(
    redis_server: RedisServer, client: redis.Redis, worker: WorkerLedger
) -> None:
    batch = large_batch(3 * PIECE_BYTES)
    client.hset(keys.batch(batch.batch_id), mapping={"p:0": b"a" * PIECE_BYTES, "p:1": b"b" * PIECE_BYTES})
    async with redis.asyncio.Redis.from_url(redis_server.url) as again:
        assert await Replay(again).batch(Accept.of(batch, 1000))
    claimed = worker.claim(batch.batch_id)
    assert claimed
    assert claimed.data == batch.data
