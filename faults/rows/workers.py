"""Faults of workers: killed, stopped, hung, and jobs that do it to them."""

from __future__ import annotations

import asyncio
import os
import signal
import time

from app import keys
from faults.load import good_jobs
from faults.table import fault
from faults.trial import Trial

BATCH_S = 0.05


@fault("worker-killed", "SIGKILL of a worker in mid-batch, every 2 s, two replicas")
async def worker_killed(trial: Trial) -> None:
    """Two replicas; what the dead one had in hand is run by the other, or by its successor."""
    async with trial.load(good_jobs(BATCH_S)):
        for _ in range(2 if trial.short else 30):
            next_s = time.monotonic() + 2
            batch, pid = await trial.until(lambda: in_hand(trial), "a worker runs a batch", 60)
            os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()
            trial.recovered(await outcome_of(trial, batch) - killed_at)
            await asyncio.sleep(max(0, next_s - time.monotonic()))


def in_hand(trial: Trial) -> tuple[str, int] | None:
    """A batch that a worker runs now, and the worker's process id."""
    running = trial.pool.client.hgetall(keys.running(trial.pool.queue()))
    pids = {record.worker_id: record.pid for record in trial.pool.records()}
    found = [
        (batch.decode(), pids[owner.decode()]) for batch, owner in running.items() if owner.decode() in pids
    ]
    return found[0] if found else None


async def outcome_of(trial: Trial, batch: str) -> float:
    """When the outcome of a batch was written (`time.monotonic()`)."""
    await trial.until(lambda: trial.witness.heard.get(batch), f"batch {batch} has its outcome", 60)
    return trial.witness.heard[batch][0]
