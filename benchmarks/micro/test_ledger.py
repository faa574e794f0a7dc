"""The ledger's round trips on a real Redis with the pool's own configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from app.ledger.commands import Accept, NewBatch
from app.ledger.worker_ledger import WorkerLedger
from app.redis.client import connect, connect_async
from app.redis.link import RedisLink
from app.settings import Settings
from tests.pool_samples import head, new_batch, outcome

N_JOBS = pytest.mark.parametrize("n_jobs", [1, 64])
N_ROUNDS = 300
RETENTION_S = 60.0


@pytest.fixture
def settings(redis_url: str) -> Iterator[Settings]:
    """Settings for an empty Redis."""
    settings = Settings(redis_url=redis_url)
    with connect(settings) as client:
        client.flushall()
        yield settings


@pytest.fixture
def client(settings: Settings) -> Iterator[redis.Redis]:
    """A synchronous client."""
    with connect(settings) as client:
        yield client


def digits(n_jobs: int) -> NewBatch:
    """A batch with one digit per job."""
    batch = new_batch(n_jobs, sample_shape=(1, 28, 28))
    return replace(batch, data=bytes(n_jobs * 784 * 4))


class Accepting:
    """A controller's link to the ledger, in an event loop of its own."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = connect_async(settings)
        self.link = RedisLink(self.client, settings.redis_timeout_s)
        self.loop.run_until_complete(self.link.connect())

    def accept(self, batch: NewBatch) -> str:
        """Accept a batch; return its id."""
        self.loop.run_until_complete(self._accept(batch))
        return batch.batch_id

    async def _accept(self, batch: NewBatch) -> None:
        answer: asyncio.Future[object] = self.loop.create_future()
        Accept.of(batch, int(RETENTION_S * 1000)).send(self.link, answer.set_result)
        assert await answer == 1

    def close(self) -> None:
        """Close the link, the client and the loop."""
        self.loop.run_until_complete(self.link.close())
        self.loop.run_until_complete(self.client.aclose())
        self.loop.close()


@pytest.fixture
def accepting(settings: Settings) -> Iterator[Accepting]:
    """A controller's link to the ledger."""
    made = Accepting(settings)
    yield made
    made.close()


@N_JOBS
def test_accept(benchmark: Any, accepting: Accepting, n_jobs: int) -> None:
    """Write a batch and its wake-up."""
    batches = [digits(n_jobs) for _ in range(N_ROUNDS + 1)]
    benchmark.pedantic(lambda: accepting.accept(batches.pop()), rounds=N_ROUNDS, warmup_rounds=1)


@N_JOBS
def test_claim(benchmark: Any, accepting: Accepting, client: redis.Redis, n_jobs: int) -> None:
    """Fetch a batch."""
    ledger = WorkerLedger(client, "host-1", head().queue, RETENTION_S)
    waiting = [accepting.accept(digits(n_jobs)) for _ in range(N_ROUNDS + 1)]
    assert benchmark.pedantic(lambda: ledger.claim(waiting.pop()), rounds=N_ROUNDS, warmup_rounds=1)


@N_JOBS
def test_finish(benchmark: Any, accepting: Accepting, client: redis.Redis, n_jobs: int) -> None:
    """Write a batch's outcome."""
    ledger = WorkerLedger(client, "host-1", head().queue, RETENTION_S)
    claims = (ledger.claim(accepting.accept(digits(n_jobs))) for _ in range(N_ROUNDS + 1))
    claimed = [batch for batch in claims if batch]
    result = outcome(n_jobs)
    assert benchmark.pedantic(lambda: ledger.finish(claimed.pop(), result), rounds=N_ROUNDS, warmup_rounds=1)
