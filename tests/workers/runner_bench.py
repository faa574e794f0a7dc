"""A batch runner on a real ledger, and a model for it that is a plain function of arrays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import redis
import redis.asyncio

from app.clock import PoolClock
from app.ledger import wire
from app.ledger.commands import NewBatch
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.wire import BatchOutcome
from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from tests.pool_samples import PAIR, accept_now, head, record
from workers.batch_runner import BatchRunner
from workers.process.heartbeat import Heartbeat
from workers.process.in_flight_marker import InFlightMarker
from workers.process.time_limit import TimeLimit
from workers.warm_up import LoadedModel

RETENTION_S = 100.0
Predict = Callable[[Any], Any]


class Bench:
    """A runner on a real ledger, and the controller's side of it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)
        self.queue = head().queue
        self.limit = TimeLimit(60)

    def runner(
        self,
        predict: Predict,
        worker_id: str = "host-1",
        max_attempts: int = 3,
        ledger: WorkerLedger | None = None,
        **model: Any,
    ) -> BatchRunner:
        """A worker's runner; `model` are more fields of its `LoadedModel`."""
        clock = PoolClock()
        ledger = ledger or WorkerLedger(self.client, worker_id, self.queue, RETENTION_S)
        self.heartbeat = Heartbeat(self.client, record(worker_id=worker_id), clock, 60)
        loaded = LoadedModel(PAIR, predict, "cpu", **model)
        return BatchRunner(
            ledger, loaded, self.heartbeat, clock, self.limit, InFlightMarker(), max_attempts=max_attempts
        )

    def accept(self, batch: NewBatch) -> str:
        accept_now(self.url, batch)
        return batch.batch_id

    def requeue(self, batch_id: str, owner: str) -> None:
        self._as_controller(lambda ledger: ledger.requeue(batch_id, self.queue, owner, b"again"))

    def outcome(self, batch_id: str) -> BatchOutcome | None:
        stored = self.client.hget(keys.batch(batch_id), "out")
        return wire.decode_outcome(stored) if isinstance(stored, bytes) else None

    def _as_controller(self, act: Callable[[ControllerLedger], Any]) -> None:
        async def go() -> None:
            async with redis.asyncio.Redis.from_url(self.url) as client:
                await act(ControllerLedger(client, RETENTION_S))

        asyncio.run(go())


def score(samples: Any) -> Any:
    """Two scores per sample; the class is 1 where the sample's numbers are above 1."""
    return np.stack([1 - samples[:, 0], samples[:, 0] - 1], axis=1)


def statuses(outcome: BatchOutcome | None) -> list[str]:
    assert outcome
    return [job.status for job in outcome.jobs]
