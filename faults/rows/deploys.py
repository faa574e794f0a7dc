"""Rolling restarts: processes are stopped and replaced one by one, under load, without a failed request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from cli.local_pool.programs import http_answers
from faults.balancer import PROBE, Balancer
from faults.fault_pool import TIGHT_LIMITS, Supervised
from faults.job_load import good_jobs
from faults.table import fault
from faults.trial import Trial

# Longer than the load's client keeps an idle connection: a request on one that is just being closed would fail.
BEHIND_A_BALANCER = {"MODELYARD_LAME_DUCK_S": "4"}


@fault(
    "roll",
    "rolling restart of the controllers behind a load balancer, then of the workers",
    TIGHT_LIMITS,
)
async def roll(trial: Trial) -> None:
    """No request fails: clients keep connections to a load balancer that polls the controllers' probe."""
    pool = trial.pool
    controllers = [pool.add_controller(**BEHIND_A_BALANCER) for _ in range(2)]
    try:
        for controller in controllers:
            controller.start()
        await asyncio.to_thread(pool.wait_until_well)
        await roll_all(trial, controllers)
    finally:
        for controller in controllers:
            await asyncio.to_thread(pool.remove, controller)
    failed = trial.sent.refused.total() + trial.sent.broken
    trial.require(not failed, f"{failed} requests failed")


async def roll_all(trial: Trial, controllers: Sequence[Supervised]) -> None:
    """Restart the controllers and then the workers, in turn; the short form restarts one of each."""
    pool = trial.pool
    n_rolled = 1 if trial.short else 2
    urls = [pool.url(controller) for controller in controllers]
    async with Balancer(urls) as balancer, trial.load(good_jobs(), urls=lambda: [balancer.url]):
        for controller in controllers[:n_rolled]:
            exits, stopped_at = len(controller.exits), time.monotonic()
            controller.terminate()
            await trial.until(lambda: len(controller.exits) > exits, "the controller has ended", 60)  # noqa: B023
            url = pool.url(controller)
            await trial.until(lambda: http_answers(url + PROBE), "it is back", 60)  # noqa: B023
            trial.recovered(time.monotonic() - stopped_at)
        for worker in pool.workers[:n_rolled]:
            exits = len(worker.exits)
            worker.terminate()
            await trial.until(lambda: len(worker.exits) > exits, "the worker has ended", 60)  # noqa: B023
            trial.require(worker.exits[-1][1] == 0, f"{worker.name} ended with {worker.exits[-1]}")
            await trial.until(lambda: pool.is_ready(worker), "it is back", 60)  # noqa: B023
