"""Overload: accepted jobs meet their deadline, and other versions and clients are hardly affected."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app.api_keys import new_key
from app.clock import to_ms
from app.redis import keys
from faults.accounting import End, ends
from faults.fault_pool import Pool, PoolPlan
from faults.flood import Answers, flood_from_another_process
from faults.job_load import job
from faults.table import fault
from faults.trial import Trial

ONE_OF_EACH = PoolPlan(replicas=1, controllers=1)
BATCH_S = 0.02  # fixed time of a forward pass, besides its samples
DEADLINE_S = 5.0
TIMES_CAPACITY = 3
RECOVERY_S = 5.0
MOST_REFUSED_AGAIN = 0.2
LEAST_THROUGH = 0.95
FILL_S = 4  # more than the queue takes to be full
PROBES_PER_S = 20.0
LOOK_S = 0.2


@dataclass
class Memory:
    """The largest memory use seen, in MiB."""

    controller_mib: float = 0.0
    redis_mib: float = 0.0


@fault("overload", f"overload at {TIMES_CAPACITY} times capacity for 60 s", ONE_OF_EACH)
async def overload(trial: Trial) -> None:
    """Measure the capacity, then overload it; read every accepted job's outcome from the ledger."""
    body, seconds = slow_body(trial), 3 if trial.short else 60
    capacity_per_s = await capacity(trial, body)
    begun_ms = redis_ms(trial)
    with watched_memory(trial.pool) as memory:
        answers = await flood(trial, body, TIMES_CAPACITY * capacity_per_s, seconds)
        over_at = time.monotonic()
        await trial.until(lambda: backlog(trial) == 0, "the backlog is empty", DEADLINE_S + 60)
        trial.recovered(time.monotonic() - over_at)
    done = await asyncio.to_thread(ends, trial.pool.client, trial.pool.queue(), begun_ms)
    judge(trial, answers, done, capacity_per_s)
    trial.note(
        f"memory at most {memory.controller_mib:.0f} MiB (controller), {memory.redis_mib:.0f} MiB (Redis)"
    )
    trial.require(
        max(trial.row.recoveries_s) < RECOVERY_S, f"the backlog was not empty within {RECOVERY_S:g} s"
    )


@fault(
    "fairness",
    "overload at 3 times capacity on one version, 20 requests/s to another",
    ONE_OF_EACH,
    in_tests=False,
)
async def fairness(trial: Trial) -> None:
    """Measure the other version's latency without the overload and with it."""
    body, seconds = slow_body(trial), 2 if trial.short else 30
    begun_ms = redis_ms(trial)
    other = trial.pool.add_worker(version=2)
    other.start()
    try:
        await asyncio.to_thread(trial.pool.wait_until_well)
        rate_per_s = TIMES_CAPACITY * (200 if trial.short else await capacity(trial, body))
        await probe(trial, 1)
        alone = await probe(trial, seconds)
        flooding = asyncio.create_task(flood(trial, body, rate_per_s, seconds + 1))
        await asyncio.sleep(1)
        beside = await probe(trial, seconds)
        answers = await flooding
        await trial.until(lambda: backlog(trial) == 0, "the backlog is empty", DEADLINE_S + 60)
    finally:
        await asyncio.to_thread(trial.pool.remove, other)
    done = await asyncio.to_thread(ends, trial.pool.client, trial.pool.queue(), begun_ms)
    trial.account_for(done, answers.refused)
    for name, each in (("without the overload", alone), ("with it", beside)):
        trial.note(f"{name}: p50 {percentile(each, 50):.0f} ms, p99 {percentile(each, 99):.0f} ms")
        trial.require(set(each.statuses) == {200}, f"{name}, not every request was answered: {each.statuses}")
    trial.require(answers.refused, "the flood was not refused anything")
    if not trial.short:
        slower_ms = percentile(beside, 50) - percentile(alone, 50)
        trial.require(slower_ms < 50, f"the flood made the other version {slower_ms:.0f} ms slower")


@fault(
    "overload-obeyed",
    f"overload at {TIMES_CAPACITY} times capacity for 20 s by callers that obey Retry-After",
    ONE_OF_EACH,
    in_tests=False,
)
async def overload_obeyed(trial: Trial) -> None:
    """Measure how many callers that return as told are refused again."""
    body, seconds = slow_body(trial), 5 if trial.short else 20
    capacity_per_s = await capacity(trial, body)
    begun_ms = redis_ms(trial)
    answers = await flood(trial, body, TIMES_CAPACITY * capacity_per_s, seconds, obeys=True)
    await trial.until(lambda: backlog(trial) == 0, "the backlog is empty", DEADLINE_S + 60)
    done = await asyncio.to_thread(ends, trial.pool.client, trial.pool.queue(), begun_ms)
    trial.account_for(done, answers.refused)
    share = answers.refused_again[1] / max(answers.returned[1], 1)
    trial.note(
        f"capacity {capacity_per_s:.0f} jobs/s; {answers.returned[1]} callers came back after Retry-After (1 to "
        f"{max(answers.retry_after_s, default=0):.0f} s), {share:.0%} of them were refused again"
    )
    trial.require(answers.returned[1], "no post was refused")
    trial.require(share < MOST_REFUSED_AGAIN, f"{share:.0%} of the returning callers were refused again")


FLOOD_KEY, FLOOD_LINE = new_key("flood", "predict")
SMALL_KEY, SMALL_LINE = new_key("small", "predict")


@fault(
    "fair-keys",
    "overload at 3 times capacity by one API key, 5 % of capacity by another",
    PoolPlan(
        replicas=1,
        controllers=1,
        environment=(("MODELYARD_API_KEYS", f"{FLOOD_LINE.line()},{SMALL_LINE.line()}"),),
    ),
    in_tests=False,
)
async def fair_keys(trial: Trial) -> None:
    """Measure the small client's share of accepted requests once the other client has filled the queue."""
    body, seconds = slow_body(trial), 4 if trial.short else 30
    capacity_per_s = 200 if trial.short else await capacity(trial, body, key=FLOOD_KEY)
    begun_ms = redis_ms(trial)
    rate_per_s = TIMES_CAPACITY * capacity_per_s
    flooding = asyncio.create_task(flood(trial, body, rate_per_s, seconds + FILL_S, key=FLOOD_KEY))
    await trial.until(lambda: backlog(trial) > capacity_per_s, "the flood has a backlog")
    small = await flood(trial, body, capacity_per_s / 20, seconds, key=SMALL_KEY)
    answers = await flooding
    await trial.until(lambda: backlog(trial) == 0, "the backlog is empty", DEADLINE_S + 60)
    done = await asyncio.to_thread(ends, trial.pool.client, trial.pool.queue(), begun_ms)
    trial.account_for(done, answers.refused + small.refused)
    through = small.statuses[202] / max(small.statuses.total(), 1)
    trial.note(
        f"the small client had {through:.0%} of {small.statuses.total()} requests accepted, the flood "
        f"{answers.statuses[202] / max(answers.statuses.total(), 1):.0%} of {answers.statuses.total()}"
    )
    trial.require(answers.refused, "the flood was not refused anything")
    trial.require(
        through >= LEAST_THROUGH, f"only {through:.0%} of the small client's requests were accepted"
    )
    in_time = sum(end.is_good for end in done) / len(done)
    trial.require(in_time >= 0.99, f"only {in_time:.1%} of the accepted jobs succeeded within their deadline")


def judge(trial: Trial, answers: Answers, done: list[End], capacity_per_s: float) -> None:
    """Account for the jobs of the overload; check deadlines and goodput."""
    good = [end for end in done if end.is_good]
    took_ms = np.array([end.took_ms for end in done])
    last_ms = max(end.received_at_ms + end.took_ms for end in done)
    goodput_per_s = len(good) / (last_ms - min(end.received_at_ms for end in done)) * 1000
    trial.account_for(done, answers.refused)
    trial.note(
        f"capacity {capacity_per_s:.0f} jobs/s, load {TIMES_CAPACITY} times that, goodput "
        f"{goodput_per_s / capacity_per_s:.0%} of capacity; latency of accepted jobs "
        f"p50 {np.percentile(took_ms, 50):.0f} ms, p99 {np.percentile(took_ms, 99):.0f} ms "
        f"(deadline {done[0].lives_ms:.0f} ms); {np.mean([end.batch_jobs for end in done]):.0f} jobs per batch; "
        f"Retry-After {min(answers.retry_after_s, default=0):.0f} to {max(answers.retry_after_s, default=0):.0f} s; "
        f"{answers.unsent} posts not sent in time"
    )
    trial.require(not answers.broken, f"{answers.broken} connections were broken")
    trial.require(set(answers.statuses) <= {202, 429}, f"answers other than 202 and 429: {answers.statuses}")
    trial.require(answers.refused, "nothing was refused")
    in_time = len(good) / len(done)
    trial.require(in_time >= 0.99, f"only {in_time:.1%} of the accepted jobs succeeded within their deadline")
    least = 0.5 if trial.short else 0.9
    trial.require(goodput_per_s >= least * capacity_per_s, f"goodput is below {least:.0%} of capacity")


def slow_body(trial: Trial) -> dict[str, Any]:
    """A job whose pass takes `BATCH_S` plus a time per sample, so that the worker is the bottleneck."""
    recipe = job(1, seconds=BATCH_S, sample_seconds=0.004 if trial.short else 0.001)
    return {"data": recipe.samples}


async def capacity(trial: Trial, body: dict[str, Any], key: str = "") -> float:
    """The worker's throughput in jobs per second with full batches."""
    begun_ms, seconds = redis_ms(trial), 1
    rate_per_s = 600 if trial.short else 3000
    await flood(trial, body, rate_per_s, seconds, deadline_s=300, key=key)
    await trial.until(lambda: backlog(trial) == 0, "the backlog is empty", 60)
    done = await asyncio.to_thread(ends, trial.pool.client, trial.pool.queue(), begun_ms)
    last_ms = max(end.received_at_ms + end.took_ms for end in done)
    return len(done) / (last_ms - min(end.received_at_ms for end in done)) * 1000


async def flood(
    trial: Trial,
    body: dict[str, Any],
    rate_per_s: float,
    seconds: float,
    deadline_s: float = DEADLINE_S,
    *,
    key: str = "",
    obeys: bool = False,
) -> Answers:
    """Post jobs for version 1."""
    query = f"worker=1&deadline={deadline_s:g}"
    url = trial.pool.urls[0]
    return await flood_from_another_process(url, query, body, rate_per_s, seconds, key, obeys=obeys)


async def probe(trial: Trial, seconds: float) -> Answers:
    """Post to version 2 at `PROBES_PER_S`, waiting for each outcome."""
    query, body = "worker=2&wait=10", {"data": job(1).samples}
    return await flood_from_another_process(trial.pool.urls[0], query, body, PROBES_PER_S, seconds)


def backlog(trial: Trial) -> int:
    """Jobs of version 1 without an outcome."""
    return int(trial.pool.client.hget(keys.BACKLOG, trial.pool.queue()) or 0)


def redis_ms(trial: Trial) -> float:
    """Redis's clock."""
    return to_ms(*trial.pool.client.time())


def percentile(answers: Answers, percent: float) -> float:
    """Latency of the answered outcomes, ms."""
    return float(np.percentile(answers.latency_ms.get(200, [0.0]), percent))


@contextmanager
def watched_memory(pool: Pool) -> Iterator[Memory]:
    """The largest memory use of the controller and Redis while the block runs."""
    most, over = Memory(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            most.controller_mib = max(most.controller_mib, resident_mib(pool.controllers[0].pid))
            most.redis_mib = max(most.redis_mib, pool.client.info("memory")["used_memory"] / 2**20)

    thread = threading.Thread(target=look, name="memory", daemon=True)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
