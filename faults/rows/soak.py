"""Soak test: a long run at a steady load with regular faults; no resource may grow without bound."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import httpx

from app.worker_record import WorkerRecord
from faults import fault_models, series
from faults.fault_pool import PoolPlan, Supervised, TooLateError
from faults.follow import Follower
from faults.job_load import Recipe, http_client, job
from faults.rows.redis import start_redis
from faults.series import Reading
from faults.table import fault
from faults.trial import Trial

RETENTION_S = 60.0  # outcomes expire about as fast as they arrive, even in a run of minutes
PLAN = PoolPlan(environment=(("MODELYARD_RESULT_RETENTION_S", f"{RETENTION_S:g}"),))
MINUTES, RATE_PER_S = 30.0, 250.0
SHARE = 0.7  # of the workers' capacity
WARM_UP_S = 20.0
LOOK_EVERY_S, READ_EVERY_S, FAULT_EVERY_S = 3.0, 10.0, 30.0
REST_S = 5.0
Harm = Callable[[Trial], Awaitable[None]]
# A controller keeps up to 64 connections to Redis after a burst.
SLACK = {"RSS": 40.0, "descriptors": 130.0, "keys": 10.0, "memory": 5.0, "connections": 130.0}


@dataclass(frozen=True)
class Size:
    """Length and rate of the run: MINUTES and RATE of the environment.

    Attributes:
        job_s: Time of one job in its worker, chosen so that the load is `SHARE` of the workers' capacity.
    """

    run_s: float
    rate_per_s: float
    job_s: float

    @classmethod
    def of(cls, trial: Trial) -> Size:
        """As the environment says; a few seconds in the short form."""
        rate_per_s = float(os.environ.get("RATE") or RATE_PER_S)
        run_s = 10.0 if trial.short else 60 * float(os.environ.get("MINUTES") or MINUTES)
        return cls(run_s, rate_per_s, SHARE * trial.pool.plan.replicas / rate_per_s)


@fault("soak", "soak test with a random fault every 30 s", PLAN, in_tests=False)
async def soak(trial: Trial) -> None:
    """Memory, file descriptors, keys and connections return to where they were.

    The first controller and the first worker are never killed, so that slow growth shows.
    """
    size, follower = Size.of(trial), Follower(trial)
    untouched = await asyncio.to_thread(series.read, trial.pool)
    async with trial.load(jobs(size), rate_per_s=size.rate_per_s):
        await asyncio.sleep(REST_S if trial.short else WARM_UP_S)
    await everything_ended(trial, follower)
    warm = await asyncio.to_thread(series.read, trial.pool)
    before = warm | {name: value for name, value in untouched.items() if not series.is_of_process(name)}
    during, harm = await run(trial, size, follower)
    await everything_ended(trial, follower)
    await asyncio.sleep(RETENTION_S + REST_S)
    after = await asyncio.to_thread(series.read, trial.pool)
    done = ", ".join(f"{count} {name}" for name, count in sorted(harm.items()))
    trial.note(f"{size.run_s / 60:g} min at {size.rate_per_s:g} jobs/s; {done}")
    trial.note(f"{follower.over_http.total} outcomes also read over HTTP")
    trial.require(
        follower.over_http.succeeded == follower.over_http.total,
        f"HTTP and ledger differ: {follower.over_http.examples}",
    )
    judge(trial, before, during, after)


async def run(trial: Trial, size: Size, follower: Follower) -> tuple[list[Reading], Counter[str]]:
    """Run load and faults; return the readings and the number of faults by kind."""
    started_at = time.monotonic()
    during: list[Reading] = []
    async with trial.load(jobs(size), rate_per_s=size.rate_per_s):
        harming = asyncio.create_task(do_harm(trial, started_at + size.run_s))
        while not harming.done():
            if time.monotonic() >= started_at + len(during) * READ_EVERY_S:
                found = await asyncio.to_thread(series.read, trial.pool)
                during.append({"t_s": time.monotonic() - started_at, **found})
                series.write(during)  # at each reading: a run that ends early leaves its series
            await follower.look()
            trial.witness.forget(time.monotonic() - 2 * RETENTION_S)
            await asyncio.sleep(LOOK_EVERY_S)
        harm = await harming
    return during, harm


def judge(trial: Trial, before: Reading, during: list[Reading], after: Reading) -> None:
    """Note each quantity before, at most and after, and require that it returned."""
    for quantity, slack in SLACK.items():
        told = []
        for name in (name for name in before if name.endswith(f" {quantity}")):
            most = max(each.get(name, 0.0) for each in during)
            values = "/".join(f"{value:,.0f}" for value in (before[name], most, after[name]))
            told.append(f"{name.removesuffix(f' {quantity}')} {values}")
            trial.require(
                after[name] <= before[name] + slack, f"{name} did not return to where it started: {values}"
            )
        trial.note(f"{quantity} before/max/after: {', '.join(told)}")
    series.draw(during)


def jobs(size: Size) -> Iterator[Recipe]:
    """Jobs that take their worker `size.job_s`."""
    return (job(number, fault_models.WELL, sample_seconds=size.job_s) for number in itertools.count())


async def do_harm(trial: Trial, until_s: float) -> Counter[str]:
    """Inject random faults until the run is over, all kinds equally often; return the counts."""
    kinds: list[Harm] = [
        worker_killed,
        controller_killed,
        redis_killed,
        redis_stopped,
        worker_stopped,
        bad_bodies,
        connection_flood,
    ]
    done: Counter[str] = Counter()
    every_s = 3.0 if trial.short else FAULT_EVERY_S
    due_s, turn = time.monotonic() + every_s, list[Harm]()
    while due_s < until_s:
        await asyncio.sleep(due_s - time.monotonic())
        turn = turn or random.sample(kinds, len(kinds))
        kind = turn.pop()
        try:
            await kind(trial)
        except (OSError, TooLateError) as error:
            trial.require(False, f"{kind.__name__}: {error!r}")
        done[kind.__name__.replace("_", " ")] += 1
        due_s = max(due_s + every_s, time.monotonic())
    await asyncio.sleep(max(0.0, until_s - time.monotonic()))
    return done


async def worker_killed(trial: Trial) -> None:
    """SIGKILL of a serving process, or of its supervisor and both."""
    worker = trial.pool.workers[-1]
    os.kill(random.choice((worker.pid, await serving_pid(trial, worker))), signal.SIGKILL)


async def controller_killed(trial: Trial) -> None:
    """SIGKILL of a controller."""
    trial.pool.controllers[-1].kill()


async def redis_killed(trial: Trial) -> None:
    """SIGKILL of Redis, restarted a second later."""
    await asyncio.to_thread(trial.pool.redis.stop, signal.SIGKILL)
    await asyncio.sleep(1)
    await asyncio.to_thread(start_redis, trial)


async def redis_stopped(trial: Trial) -> None:
    """SIGSTOP of Redis for five seconds."""
    await stopped_for(trial.pool.redis.pid, 5)


async def worker_stopped(trial: Trial) -> None:
    """SIGSTOP of a serving process for five seconds."""
    await stopped_for(await serving_pid(trial, random.choice(trial.pool.workers)), 5)


async def stopped_for(pid: int, seconds: float) -> None:
    """SIGSTOP, and SIGCONT later."""
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


async def serving_pid(trial: Trial, worker: Supervised) -> int:
    """Id of a worker's serving process, once there is one."""
    record: WorkerRecord = await trial.until(lambda: trial.pool.serving(worker), "a worker serves")
    return record.pid


async def bad_bodies(trial: Trial) -> None:
    """Bodies that every controller must refuse."""
    async with http_client(base_url=random.choice(trial.pool.urls), timeout=30) as http:
        for body in (b"{", b'{"data": [["x"]]}', b"\xff" * 10_000, b"[" * 100_000) * 50:
            try:
                answer = await http.post("/predict", content=body)
            except httpx.HTTPError:
                continue  # the controller is being restarted
            trial.require(answer.status_code < 500 or answer.status_code == 503, answer.text)


async def connection_flood(trial: Trial) -> None:
    """Connections that send nothing."""
    where = httpx.URL(trial.pool.urls[0])
    opened = [await asyncio.open_connection(where.host, where.port) for _ in range(300)]
    await asyncio.sleep(3)
    for _, writer in opened:
        writer.close()


async def everything_ended(trial: Trial, follower: Follower) -> None:
    """Return once the pool is well and every accepted job has its outcome."""
    await asyncio.to_thread(trial.pool.wait_until_well)
    await trial.until(lambda: trial.pool.backlog() == 0, "the backlog is empty", 120)
    await follower.look()
    await asyncio.sleep(REST_S)  # idle connections are closed
