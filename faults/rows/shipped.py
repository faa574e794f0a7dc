"""Faults of the pool in docker-compose.yml: its Redis with the users of deploy/redis-users.acl."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time

from faults.fault_pool import PoolPlan
from faults.job_load import good_jobs
from faults.rows.redis import n_batches, n_written_again, occupied_workers, refused, resumed, start_redis
from faults.table import fault
from faults.trial import Trial

PLAN = PoolPlan(replicas=1, controllers=1, as_shipped=True)
N_JOBS = 200


@fault(
    "shipped-redis-restarted",
    "SIGTERM and restart of the Redis of docker-compose.yml, 5 times",
    PLAN,
    in_tests=False,
)
async def shipped_redis_restarted(trial: Trial) -> None:
    """Redis writes everything before it exits; controllers replay nothing."""
    before = n_written_again(trial)
    await end_redis_again_and_again(trial, signal.SIGTERM, 1 if trial.short else 5)
    n_again = n_written_again(trial) - before
    trial.require(not n_again, f"Redis lost {n_again} batches over a restart")


@fault(
    "shipped-redis-killed",
    "SIGKILL and restart of the Redis of docker-compose.yml, 20 times",
    PLAN,
    in_tests=False,
)
async def shipped_redis_killed(trial: Trial) -> None:
    """As `redis-killed`; jobs older than the replay buffers survive too."""
    await end_redis_again_and_again(trial, signal.SIGKILL, 3 if trial.short else 20)


@fault("shipped-all-restarted", "restart of the whole pool of docker-compose.yml, 3 times", PLAN)
async def shipped_all_restarted(trial: Trial) -> None:
    """Only Redis keeps state: finished, waiting and running jobs survive."""
    for _ in range(1 if trial.short else 3):
        await post_some(trial)
        async with occupied_workers(trial):
            await post_some(trial)
            for worker in trial.pool.workers:
                await asyncio.to_thread(worker.stop, signal.SIGKILL)
        open_jobs, batches = trial.pool.backlog(), n_batches(trial)
        trial.require(open_jobs >= N_JOBS, f"only {open_jobs} jobs waited")
        started_at_s = time.monotonic()
        await asyncio.to_thread(trial.pool.stop_processes)
        await asyncio.to_thread(trial.pool.start)
        trial.recovered(time.monotonic() - started_at_s)
        left = n_batches(trial)
        trial.require(left == batches, f"of {batches} batches {left} were there after the start")


async def end_redis_again_and_again(trial: Trial, number: signal.Signals, times: int) -> None:
    """Stop Redis under load, start it again, and check that the pool resumes."""
    async with trial.load(good_jobs()):
        for outage_s in itertools.islice(itertools.cycle((0.2, 1.0, 2.0)), times):
            await asyncio.sleep(1 if trial.short else 4)
            await asyncio.to_thread(trial.pool.redis.stop, number)
            await refused(trial)
            await asyncio.sleep(outage_s)
            await asyncio.to_thread(start_redis, trial)
            await resumed(trial, time.monotonic())


async def post_some(trial: Trial) -> None:
    """Have `N_JOBS` jobs accepted."""
    async with trial.load(itertools.islice(good_jobs(), N_JOBS)) as load:
        await load.finished()
