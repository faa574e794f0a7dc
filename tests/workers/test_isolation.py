"""A job that kills its worker every time is quarantined, and does not take its batch with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import redis
import redis.asyncio
from numpy.typing import NDArray

from app.clock import PoolClock
from app.ledger import ids
from app.ledger.controller_ledger import ControllerLedger, JobView
from app.ledger.wire import BatchOutcome
from app.ledger.worker_ledger import WorkerLedger
from tests.pool_samples import PAIR, RedisServer, accept, new_batch, outcome, record
from workers.batch_runner import BatchRunner
from workers.process.heartbeat import Heartbeat
from workers.process.in_flight_marker import InFlightMarker
from workers.process.time_limit import TimeLimit
from workers.warm_up import LoadedModel

POISON = 2.0
N_JOBS = 5
MAX_ATTEMPTS = 3
LIMIT_S = 60.0


class WorkerDiedError(BaseException):
    """Stands for a signal: no `except Exception` sees it, and nothing after it is written."""


class Worker:
    """A worker that dies when it meets `POISON`, and counts the forward passes that it lived through."""

    def __init__(self, client: redis.Redis, worker_id: str) -> None:
        self.passes: list[list[float]] = []
        clock = PoolClock()
        own = record(worker_id=worker_id)
        jobs = WorkerLedger(client, worker_id, own.queue, 60)
        heartbeat = Heartbeat(client, own, clock, 1)
        model = LoadedModel(PAIR, self._predict, "cpu")
        limit = TimeLimit(LIMIT_S)
        self.runner = BatchRunner(
            jobs, model, heartbeat, clock, limit, InFlightMarker(), max_attempts=MAX_ATTEMPTS
        )

    def _predict(self, samples: NDArray[Any]) -> NDArray[Any]:
        if POISON in samples:
            raise WorkerDiedError
        self.passes.append(samples[:, 0].tolist())
        return np.asarray(samples * np.array([0.1, 0.2], np.float32))


async def read_outcome(jobs: ControllerLedger, batch_id: str) -> BatchOutcome | None:
    view = await jobs.read(ids.JobRef(batch_id, 0))
    assert isinstance(view, JobView)
    return view.outcome


async def test_a_job_that_kills_its_worker_is_quarantined_alone(redis_server: RedisServer) -> None:
    batch = new_batch(N_JOBS)
    queue = batch.head.queue
    lives: list[Worker] = []
    with redis.Redis.from_url(redis_server.url) as client:
        async with redis.asyncio.Redis.from_url(redis_server.url) as connection:
            jobs = ControllerLedger(connection, 60)
            await accept(connection, batch)
            while (final := await read_outcome(jobs, batch.batch_id)) is None:
                lives.append(Worker(client, f"worker-{len(lives)}"))
                try:
                    lives[-1].runner.run(batch.batch_id)
                except WorkerDiedError:
                    assert await jobs.requeue(batch.batch_id, queue, f"worker-{len(lives) - 1}", b"again")
        assert client.hget("modelyard:backlog", queue) == b"0"

    assert len(lives) == MAX_ATTEMPTS + 1
    assert [job.status for job in final.jobs] == [
        "succeeded",
        "succeeded",
        "failed",
        "succeeded",
        "succeeded",
    ]
    assert final.jobs[2].error_code == "job_quarantined"
    # Together once, which killed the first; the second got as far as the poison; the last ran the rest alone.
    assert [life.passes for life in lives] == [[], [[0.0], [1.0]], [], [[3.0], [4.0]]]


async def test_a_worker_that_lost_its_claim_runs_no_further_job(redis_server: RedisServer) -> None:
    batch = new_batch(2)
    with redis.Redis.from_url(redis_server.url) as client:
        async with redis.asyncio.Redis.from_url(redis_server.url) as connection:
            await accept(connection, batch)
        first = WorkerLedger(client, "first", batch.head.queue, 60)
        claimed = first.claim(batch.batch_id)
        assert claimed is not None
        client.hset(f"modelyard:running:{batch.head.queue}", batch.batch_id, "second")
        assert not first.progress(claimed, 0, None)
        assert not first.finish(claimed, outcome(2, worker_id="first"))
