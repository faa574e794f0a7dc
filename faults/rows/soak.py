"""A long run at a steady load with a fault every so often: nothing may pile up."""

from __future__ import annotations

import asyncio
import csv
import itertools
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import redis

from faults import model
from faults.load import Recipe, account
from faults.pool import PoolPlan, Supervised, rss_mib
from faults.rows.redis import start_redis
from faults.table import fault
from faults.trial import SETTLE_S, Trial

RETENTION_S = 60
PLAN = PoolPlan(environment=(("MODELYARD_RESULT_RETENTION_S", str(RETENTION_S)),))
MINUTES = 30.0
READ_EVERY_S = 10.0  # outcomes are read long before they expire
FAULT_EVERY_S = 30.0
SERIES = Path("soak.csv")
# Two workers at 5.5 ms a job take about 365 jobs/s: this is 70 % of that.
RATE_PER_S, JOB_S = 255.0, 0.0055
SLACK = {"rss_mib": 40.0, "fds": 40.0, "connections": 40.0, "keys": 20.0}
Reading = dict[str, float]


@fault("soak", "30 min at 70 % of capacity, a random fault every 30 s", PLAN, in_tests=False)
async def soak(trial: Trial) -> None:
    """Memory, file descriptors, keys and connections return to where they were after a minute of load."""
    run_s = 10.0 if trial.short else 60 * float(os.environ.get("MINUTES") or MINUTES)
    series: list[Reading] = []
    async with trial.load(jobs(), rate_per_s=RATE_PER_S):
        await asyncio.sleep(3 if trial.short else 20)
    before = await at_rest(trial)
    started_at = time.monotonic()
    async with trial.load(jobs(), rate_per_s=RATE_PER_S):
        faults = asyncio.create_task(do_harm(trial, started_at + run_s))
        while time.monotonic() < started_at + run_s or not faults.done():
            await asyncio.sleep(min(READ_EVERY_S, run_s / 2))
            await read_outcomes(trial)
            series.append({"t_s": time.monotonic() - started_at, **reading(trial)})
        harm = await faults
    after = await at_rest(trial)
    trial.note(f"done: {', '.join(f'{count} {name}' for name, count in sorted(harm.items()))}")
    for name, slack in SLACK.items():
        most = max(each[name] for each in series)
        trial.note(f"{name} before {before[name]:.0f}, at most {most:.0f}, after {after[name]:.0f}")
        trial.require(after[name] <= before[name] + slack, f"{name} did not return to where it started")
    if not trial.short:
        write_series(series)


def jobs() -> Iterator[Recipe]:
    """Jobs that take their worker `JOB_S` each."""
    return (Recipe(((number % model.N_CLASSES, model.WELL, 0.0, JOB_S),)) for number in itertools.count())


async def do_harm(trial: Trial, until_s: float) -> Counter[str]:
    """Do a random fault every so often, and say how often each."""
    kinds: list[Callable[[Trial], Awaitable[None]]] = [
        worker_killed,
        controller_killed,
        redis_killed,
        redis_stopped,
        worker_stopped,
        bad_bodies,
        connection_flood,
    ]
    done: Counter[str] = Counter()
    pause_s = 3.0 if trial.short else FAULT_EVERY_S
    while time.monotonic() + pause_s < until_s:
        await asyncio.sleep(pause_s)
        kind = random.choice(kinds)
        await kind(trial)
        done[kind.__name__.replace("_", " ")] += 1
    return done


async def worker_killed(trial: Trial) -> None:
    """SIGKILL of a worker."""
    random.choice(trial.pool.workers).kill()


async def controller_killed(trial: Trial) -> None:
    """SIGKILL of a controller."""
    random.choice(trial.pool.controllers).kill()


async def redis_killed(trial: Trial) -> None:
    """SIGKILL of Redis, which is back a second later."""
    await asyncio.to_thread(trial.pool.redis.stop, signal.SIGKILL)
    await asyncio.sleep(1)
    await asyncio.to_thread(start_redis, trial)


async def redis_stopped(trial: Trial) -> None:
    """SIGSTOP of Redis for five seconds."""
    await stopped_for(trial.pool.redis, 5)


async def worker_stopped(trial: Trial) -> None:
    """SIGSTOP of a worker for five seconds."""
    await stopped_for(random.choice(trial.pool.workers), 5)


async def stopped_for(process: Supervised, seconds: float) -> None:
    """SIGSTOP, and SIGCONT later."""
    process.send(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.send(signal.SIGCONT)


async def bad_bodies(trial: Trial) -> None:
    """Bodies that no controller can take."""
    async with httpx.AsyncClient(base_url=random.choice(trial.pool.urls), timeout=30) as http:
        for body in (b"{", b'{"data": [["x"]]}', b"\xff" * 10_000, b"[" * 100_000) * 50:
            try:
                answer = await http.post("/predict", content=body)
            except httpx.HTTPError:
                continue  # the controller was killed
            trial.require(answer.status_code < 500 or answer.status_code == 503, answer.text)


async def connection_flood(trial: Trial) -> None:
    """Connections that say nothing."""
    where = httpx.URL(random.choice(trial.pool.urls))
    opened = [await asyncio.open_connection(where.host, where.port) for _ in range(300)]
    await asyncio.sleep(3)
    for _, writer in opened:
        writer.close()


async def read_outcomes(trial: Trial) -> None:
    """Account for what was accepted so far, before it expires."""
    some = dict(trial.sent.accepted)
    for job_id in some:
        del trial.sent.accepted[job_id]
    counted = await account(trial.pool.urls, some, SETTLE_S)
    trial.settle(len(some), counted)


async def at_rest(trial: Trial) -> Reading:
    """A reading once all that was accepted is finished and, but for the short form, has expired."""
    await asyncio.to_thread(trial.pool.wait_until_well)
    await read_outcomes(trial)
    await asyncio.sleep(1 if trial.short else RETENTION_S + 10)
    found = reading(trial)
    return {**found, "keys": 0.0} if trial.short else found


def reading(trial: Trial) -> Reading:
    """What all processes hold now, added up."""
    pool = trial.pool
    pids = [each.pid for each in (*pool.controllers, *pool.workers, pool.redis) if each.is_alive]
    found = {"rss_mib": 0.0, "fds": 0.0, "connections": 0.0, "keys": 0.0}
    for pid in pids:
        try:
            found["rss_mib"] += rss_mib(pid)
            found["fds"] += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:  # killed just now
            continue
    try:
        found["connections"] = pool.client.info("clients")["connected_clients"]
        found["keys"] = pool.client.dbsize()
    except redis.RedisError:  # away: that is what the row does
        return found
    return found


def write_series(series: list[Reading]) -> None:
    """Every reading, for a plot."""
    with SERIES.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(series[0]))
        writer.writeheader()
        writer.writerows(series)
