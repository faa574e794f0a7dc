"""Rolling restarts: processes are stopped and replaced one by one, under load, without a failed request."""

from __future__ import annotations

import time

from cli.local_pool.programs import http_answers
from faults.balancer import PROBE, Balancer
from faults.fault_pool import PoolPlan
from faults.job_load import good_jobs
from faults.table import fault
from faults.trial import Trial

# Longer than the load's client keeps an idle connection: a request on one that is just being closed would fail.
BEHIND_A_BALANCER = PoolPlan(environment=(("MODELYARD_LAME_DUCK_S", "4"),))


@fault(
    "roll",
    "rolling restart of the controllers behind a load balancer, then of the workers",
    BEHIND_A_BALANCER,
)
async def roll(trial: Trial) -> None:
    """No request fails: clients keep connections to a load balancer that polls the controllers' probe."""
    pool = trial.pool
    n_rolled = 1 if trial.short else 2
    async with Balancer(pool.urls) as balancer, trial.load(good_jobs(), urls=lambda: [balancer.url]):
        for controller in pool.controllers[:n_rolled]:
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
            await trial.until(lambda: pool.is_ready(worker), "it is back", 60)  # noqa: B023
    failed = trial.sent.refused.total() + trial.sent.broken
    trial.require(not failed, f"{failed} requests failed")
