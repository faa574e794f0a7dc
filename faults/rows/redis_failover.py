"""Failovers by Redis Sentinel: ordered ones, and after a SIGKILL of the primary."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

from faults.fault_pool import PoolPlan, wait_until
from faults.job_load import good_jobs
from faults.rows.redis import n_written_again, resumed
from faults.table import fault
from faults.trial import Trial

PLAN = PoolPlan(replicas=1, sentinels=True)
# What docs/deployment.md recommends.
GUARDED = PoolPlan(
    replicas=1, sentinels=True, redis_options=("min-replicas-to-write 1", "min-replicas-max-lag 5")
)
LAG_S = 1.5  # less than controllers keep copies
NOWHERE = "REPLICAOF 127.0.0.1 1"
N_ROUNDS = 5


@fault(
    "redis-failover",
    "Sentinel: SIGKILL of the primary, its last 1.5 s on no replica, then an ordered failover; 5 times",
    PLAN,
)
async def redis_failover(trial: Trial) -> None:
    """Controllers write again what the former primary confirmed and the new one lacks; nobody writes to both."""
    await fail_over_again_and_again(trial, lag_s=LAG_S)


@fault(
    "redis-failover-guarded",
    "Sentinel: the same with `min-replicas-to-write 1` and without the lag",
    GUARDED,
    in_tests=False,
)
async def redis_failover_guarded(trial: Trial) -> None:
    """As in the recommended configuration."""
    await fail_over_again_and_again(trial, lag_s=0)


async def fail_over_again_and_again(trial: Trial, lag_s: float) -> None:
    """Both kinds of failover under load, and the time to resume after the Sentinels name another primary."""
    named_after_s: dict[str, list[float]] = defaultdict(list)
    before, excused, is_guarded = n_written_again(trial), 0, trial.pool.plan == GUARDED
    for _ in range(1 if trial.short else N_ROUNDS):
        async with trial.load(good_jobs()):
            await asyncio.sleep(1)
            since_s = await fail_over(trial, named_after_s, killed=True, lag_s=lag_s)
            await asyncio.sleep(1)
        excused += await n_run_again(trial, since_s)
        if is_guarded or not trial.short:
            await asyncio.to_thread(complete, trial)
        async with trial.load(good_jobs()):
            await asyncio.sleep(1)
            since_s = await fail_over(trial, named_after_s, killed=False, lag_s=0)
            await asyncio.sleep(1)
        excused += await n_run_again(trial, since_s)
        if not trial.short:
            await asyncio.to_thread(complete, trial)
    for what, times in named_after_s.items():
        trial.note(f"the Sentinels named another primary {min(times):.1f} to {max(times):.1f} s after {what}")
    trial.note(f"{n_written_again(trial) - before} batches lost and written again")
    trial.note(f"{excused} batches kept without their outcome and run again")


async def fail_over(
    trial: Trial, named_after_s: dict[str, list[float]], *, killed: bool, lag_s: float
) -> float:
    """One failover; returns when it began, `time.monotonic()`.

    Args:
        named_after_s: Receives the time until the Sentinels named another primary.
    """
    servers = trial.pool.sentinels
    former, since_s = servers.primary(), time.monotonic()
    if lag_s:
        for port in servers.replicas():
            with servers.client(port) as client:
                client.execute_command(*NOWHERE.split())
        await asyncio.sleep(lag_s)
    began_s = time.monotonic()
    if killed:
        await asyncio.to_thread(servers.stop, former)
    else:
        await asyncio.to_thread(servers.fail_over)
    await trial.until(lambda: servers.primary() != former, "the Sentinels name another primary")
    named_s = time.monotonic()
    named_after_s["a SIGKILL" if killed else "the order"].append(named_s - began_s)
    await resumed(trial, named_s)
    return since_s


async def n_run_again(trial: Trial, since_s: float) -> int:
    """Number of batches whose outcome was lost since then, and that ran again; waits until all have."""
    await trial.until(lambda: trial.pool.backlog() == 0, "no job is open")
    return trial.witness.excuse_repeats(since_s)


def complete(trial: Trial) -> None:
    """Start the killed server again, and wait until the primary has two replicas."""
    servers = trial.pool.sentinels
    servers.start_dead()
    wait_until(lambda: servers.is_complete, "the primary has two replicas", 60)
