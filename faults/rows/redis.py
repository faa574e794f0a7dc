"""Faults of Redis: killed, paused, cut off, full, emptied."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from app.clock import to_ms
from app.redis import keys
from cli.local_pool.present_state import redis_answers
from faults import fault_models
from faults.fault_pool import PoolPlan, rss_mib, wait_until
from faults.job_load import Recipe, account, good_jobs, http_client, job
from faults.table import fault
from faults.trial import Trial

# The time limit of a pass is longer than each outage and each suspension of a worker.
PLAN = PoolPlan(proxied=True, environment=(("MODELYARD_INFERENCE_TIMEOUT_S", "120"),))
RESUME_S = 5.0
REFUSE_S = 5.0  # a Redis timeout, a heartbeat, and what a busy machine adds
GROWTH_MIB = 48
CANCELLED = "job_cancelled"
COPIES_KEPT_S = 6.0  # longer than the replay buffer's `KEEP_S`, two heartbeats, and what a busy machine adds


# The tests run only `redis-set-back` of these three: it loses more, and does so each time.
@fault(
    "redis-killed", "SIGKILL and restart of Redis (`appendfsync everysec`), 20 times", PLAN, in_tests=False
)
async def redis_killed(trial: Trial) -> None:
    """Redis reads its file again; controllers replay what Redis confirmed and did not write."""
    await kill_redis_again_and_again(trial, "everysec")


@fault("redis-set-back", "SIGKILL and restart of Redis with the loss of its last 2 s, 20 times", PLAN)
async def redis_set_back(trial: Trial) -> None:
    """Simulate a kill during a slow fsync, which delays writes for up to 2 s: controllers replay all of them."""
    await kill_redis_again_and_again(trial, "everysec", lost_s=2)


@fault(
    "redis-killed-always",
    "SIGKILL and restart of Redis (`appendfsync always`), 20 times",
    PLAN,
    in_tests=False,
)
async def redis_killed_always(trial: Trial) -> None:
    """Redis reads everything that it confirmed from its file."""
    await kill_redis_again_and_again(trial, "always")


async def kill_redis_again_and_again(trial: Trial, appendfsync: str, lost_s: float = 0) -> None:
    """Kill Redis under load and check that the pool resumes; with `lost_s`, cut its last writes off its file."""
    outages_s = (0.2, 1.0) if trial.short else (0.2, 1.0, 2.0, 5.0) * 5
    trial.pool.client.config_set("appendfsync", appendfsync)
    before, n_excused = n_written_again(trial), 0
    async with trial.load(good_jobs()):
        for outage_s in outages_s:
            await asyncio.sleep(1)
            file = append_only_file(trial)
            since_s, since_ms, size_bytes = between_two_writes(trial, file)
            await asyncio.sleep(lost_s)
            await asyncio.to_thread(trial.pool.redis.stop, signal.SIGKILL)
            if lost_s:
                os.truncate(file, size_bytes)
                n_excused += trial.witness.excuse(since_s, since_ms)
            await refused(trial)
            await asyncio.sleep(outage_s)
            await asyncio.to_thread(start_redis, trial)
            trial.pool.client.config_set("appendfsync", appendfsync)
            await resumed(trial, time.monotonic())
    trial.pool.client.config_set("appendfsync", "everysec")
    trial.note(f"{n_written_again(trial) - before} batches lost and written again")
    if lost_s:
        trial.note(f"{n_excused} batches kept without their outcome, possibly run again")


def n_written_again(trial: Trial) -> int:
    """Batches that the controllers logged as replayed."""
    logs = [controller.log.read_text() for controller in trial.pool.controllers]
    return sum(int(count) for log in logs for count in re.findall(r"Redis lost (\d+) of", log))


@fault("redis-stopped", "SIGSTOP of Redis for 20 s", PLAN)
async def redis_stopped(trial: Trial) -> None:
    """Connections stay open, and Redis answers nothing."""
    async with outage(trial):
        trial.pool.redis.send(signal.SIGSTOP)
        await while_away(trial)
        trial.pool.redis.send(signal.SIGCONT)
        await resumed(trial, time.monotonic())


@fault("redis-paused", "CLIENT PAUSE of Redis for 20 s", PLAN, in_tests=False)
async def redis_paused(trial: Trial) -> None:
    """Redis accepts connections and commands, and answers after the pause."""
    pause_s = 3 if trial.short else 20
    async with outage(trial):
        until_s = time.monotonic() + pause_s
        trial.pool.client.execute_command("CLIENT", "PAUSE", pause_s * 1000, "ALL")
        await refused(trial)
        await asyncio.sleep(until_s - time.monotonic())
        await resumed(trial, until_s)


@fault("redis-cut", "half-open connections to Redis for 20 s", PLAN)
async def redis_cut(trial: Trial) -> None:
    """As behind a firewall that lost its state: only connections made after the outage work."""
    async with outage(trial):
        trial.pool.proxy.go_dead()
        await while_away(trial)
        trial.pool.proxy.revive()
        await resumed(trial, time.monotonic())


@fault("redis-full", "Redis at `maxmemory` (`noeviction`) for 20 s", PLAN)
async def redis_full(trial: Trial) -> None:
    """New jobs are refused and leave nothing behind; accepted jobs are read, cancelled and finished."""
    pool = trial.pool
    async with trial.load(good_jobs(0.02)):
        await asyncio.sleep(1)
        try:
            async with occupied_workers(trial):  # so that something waits when there is no more room
                cancelled = await to_be_cancelled(trial)
                await asyncio.sleep(0.5)
                pool.client.config_set("maxmemory", "1mb")
                await refused(trial, "ledger_full")
                batches = n_batches(trial)
                await cancel(trial, cancelled)
            await trial.until(lambda: pool.backlog() == 0, "the accepted jobs end while Redis is full")
            await asyncio.sleep(4 if trial.short else 20)
            trial.require(n_batches(trial) <= batches, "a refused job left a record")
            trial.require(pool.backlog() == 0, "a refused job is counted")
            ready = sum(record.state == "ready" for record in pool.records())
            trial.require(ready == len(pool.workers), f"{ready} workers are ready in a full Redis")
        finally:
            pool.client.config_set("maxmemory", "0")
        await resumed(trial, time.monotonic())


@fault("redis-emptied", "loss of all Redis data (FLUSHALL, then an empty data folder)", PLAN)
async def redis_emptied(trial: Trial) -> None:
    """Controllers replay the latest jobs; older jobs become unknown; no process needs a restart."""
    numbers = trial.pool.client.hgetall(keys.NUMBERS)
    for empty in (flush, start_on_new_folder):
        gone = await an_old_job(trial)
        await lose_one_that_is_waited_for(trial, empty)
        async with trial.load(good_jobs()):
            await asyncio.sleep(1)
            await asyncio.to_thread(empty, trial)
            await resumed(trial, time.monotonic())
            await unknown_at_last(trial, gone)
            await known_again(trial, numbers)
            await said_so(trial)
        # Before the next emptying, which is to find them too old.
        trial.counted.add(await account(trial.pool.urls, trial.sent.accepted, RESUME_S * 4))
        trial.sent.accepted.clear()
    unknown = trial.sent.refused["404 worker_unknown"]
    trial.require(not unknown, f"{unknown} posts were told that there is no such worker")


async def an_old_job(trial: Trial) -> str:
    """A finished job of which no controller has a copy any more."""
    answer = await post(trial)
    await asyncio.sleep(COPIES_KEPT_S)
    return str(answer.json()["id"])


async def lose_one_that_is_waited_for(trial: Trial, empty: Callable[[Trial], None]) -> None:
    """Check that a waiting caller gets its outcome although Redis lost the job."""
    serving = [record.pid for record in map(trial.pool.serving, trial.pool.workers) if record]
    signal_all(serving, signal.SIGSTOP)
    waiter = asyncio.create_task(post(trial, "worker=1&wait=30"))
    try:
        await trial.until(lambda: waiter.done() or trial.pool.backlog() > 0, "the job is accepted")
        await asyncio.to_thread(empty, trial)
    finally:
        signal_all(serving, signal.SIGCONT)
    answer = await waiter
    told = answer.status_code, answer.json().get("status")
    trial.require(
        told == (200, "succeeded"), f"the caller waiting for a lost job received {told}: {answer.text}"
    )
    await asyncio.to_thread(trial.pool.wait_until_well)


async def unknown_at_last(trial: Trial, job_id: str) -> None:
    """Check that a lost job is answered 503 while a controller may replay it, then 404."""
    give_up_at_s = time.monotonic() + 4 * RESUME_S
    async with http_client(timeout=10) as http:
        for url in trial.pool.urls:
            while (answer := await http.get(f"{url}/results/{job_id}")).status_code == 503:
                trial.require("retry-after" in answer.headers, "a refusal had no Retry-After")
                if time.monotonic() > give_up_at_s:
                    break
                await asyncio.sleep(0.1)
            trial.require(
                answer.status_code == 404, f"a lost job is answered {answer.status_code}: {answer.text}"
            )


def outage(trial: Trial) -> Outage:
    """Load during an outage, with a check of the controllers' memory."""
    return Outage(trial)


class Outage:
    """Load on a pool whose Redis goes away, and the memory of its controllers before and after."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._load = trial.load(good_jobs())

    async def __aenter__(self) -> None:
        await self._load.__aenter__()
        await asyncio.sleep(1)
        self._before_mib = self._rss_mib()

    async def __aexit__(self, *error: object) -> None:
        await asyncio.sleep(1)
        await self._load.finish()
        growth_mib = self._rss_mib() - self._before_mib
        self._trial.note(f"controllers grew by {growth_mib:.0f} MiB")
        self._trial.require(growth_mib < GROWTH_MIB, f"controllers grew by {growth_mib:.0f} MiB")

    def _rss_mib(self) -> float:
        return sum(rss_mib(controller.pid) for controller in self._trial.pool.controllers)


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to each."""
    for pid in pids:
        os.kill(pid, number)


async def while_away(trial: Trial) -> None:
    """Let an outage last, and check that callers are refused during it."""
    until_s = time.monotonic() + (3 if trial.short else 20)
    await refused(trial)
    await asyncio.sleep(max(0, until_s - time.monotonic()))


async def post(
    trial: Trial, query: str = "worker=1&deadline=300", url: str = "", samples: Any = None
) -> httpx.Response:
    """One post beside the load."""
    async with http_client(timeout=60) as http:
        return await http.post(
            f"{url or trial.pool.urls[0]}/predict?{query}", json={"data": samples or job(1).samples}
        )


async def refused(trial: Trial, code: str = "ledger_unavailable") -> None:
    """Check that every controller refuses within `REFUSE_S` with 503 and Retry-After."""
    for url in trial.pool.urls:
        answer, give_up_at = None, time.monotonic() + REFUSE_S
        while time.monotonic() < give_up_at and (answer is None or answer.status_code == 202):
            if answer is not None:
                trial.sent.accepted[answer.json()["id"]] = job(1)
            answer = await post(trial, url=url)
        assert answer is not None
        told = answer.status_code, answer.json().get("code")
        trial.require(told == (503, code), f"a caller received {told}: {answer.text}")
        trial.require("retry-after" in answer.headers, "a refusal had no Retry-After")


async def resumed(trial: Trial, back_at_s: float) -> None:
    """Note the time from Redis's return until jobs are accepted and finished; at most `RESUME_S`."""
    # At once, not in turn: on a busy machine each post takes half a second.
    again = [accepted_again(trial, url, back_at_s) for url in trial.pool.urls]
    took_s = max(await asyncio.gather(trial.next_outcome(back_at_s), *again))
    trial.recovered(took_s)
    trial.require(took_s < RESUME_S, f"it took {took_s:.1f} s to resume")


async def accepted_again(trial: Trial, url: str, back_at_s: float) -> float:
    """Seconds from Redis's return until a controller accepts a job."""
    while (answer := await post(trial, url=url)).status_code != 202:
        if time.monotonic() > back_at_s + 4 * RESUME_S:
            trial.require(False, f"no job is accepted: {answer.status_code}")
            break
        await asyncio.sleep(0.05)
    else:
        trial.sent.accepted[answer.json()["id"]] = job(1)
    return time.monotonic() - back_at_s


def append_only_file(trial: Trial) -> Path:
    """The current append-only file; Redis 7 keeps it in a folder of its own."""
    return max(
        (trial.pool.folder / "redis").glob("**/appendonly*.aof"), key=lambda file: file.stat().st_mtime
    )


def between_two_writes(trial: Trial, file: Path) -> tuple[float, float, int]:
    """A moment to set Redis back to: local time, s; Redis's time, ms; bytes written by then."""
    trial.pool.client.client_pause(1000, all=False)
    try:
        return time.monotonic(), to_ms(*trial.pool.client.time()), file.stat().st_size
    finally:
        trial.pool.client.client_unpause()


def start_redis(trial: Trial) -> None:
    """Start Redis and wait until it answers."""
    trial.pool.redis.start()
    wait_until(lambda: redis_answers(trial.pool.redis_url), "Redis answers")


def flush(trial: Trial) -> None:
    """Empty Redis while it runs."""
    trial.pool.client.flushall()


def start_on_new_folder(trial: Trial) -> None:
    """Start Redis again without its data."""
    trial.pool.redis.stop(signal.SIGKILL)
    for folder in (trial.pool.folder / "redis").glob("appendonly*"):
        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    start_redis(trial)


async def known_again(trial: Trial, numbers: Any) -> None:
    """Check that the queues have their numbers and that the backlog is right."""
    pool = trial.pool
    await trial.until(
        lambda: pool.client.hgetall(keys.NUMBERS) == numbers, "workers have their numbers again"
    )
    async with http_client(timeout=10) as http:
        rows = (await http.get(f"{pool.urls[0]}/workers")).json()["workers"]
    backlog = [row["backlog_jobs"] for row in rows]
    trial.require(all(0 <= jobs < 1000 for jobs in backlog), f"the backlog is {backlog}")


async def said_so(trial: Trial) -> None:
    """Check that one of the controllers counts the loss in its metrics."""
    async with http_client(timeout=10) as http:
        pages = [(await http.get(f"{url}/metrics")).text for url in trial.pool.urls]
    trial.require(
        any(re.search(r"^modelyard_ledger_losses_total [1-9]", page, re.MULTILINE) for page in pages),
        "no controller counts the loss",
    )


def n_batches(trial: Trial) -> int:
    """Records of batches in Redis."""
    return sum(1 for _ in trial.pool.client.scan_iter(keys.batch("*"), count=1000))


@asynccontextmanager
async def occupied_workers(trial: Trial) -> AsyncIterator[None]:
    """Keep every worker in a forward pass while the block runs; heartbeats continue."""
    gate, running = trial.pool.folder / fault_models.GATE, keys.running(trial.pool.queue())
    gate.touch()
    try:
        for number in range(len(trial.pool.workers)):
            batch = await trial.submit(job(1, fault_models.WAITS))
            claimed = partial(trial.pool.client.hexists, running, batch)
            await trial.until(claimed, f"worker {number} is occupied")
        yield
    finally:
        gate.unlink()


async def to_be_cancelled(trial: Trial) -> str:
    """A job that waits because every worker is busy."""
    answer = await post(trial)
    job_id = str(answer.json()["id"])
    trial.sent.accepted[job_id] = Recipe(job(1).samples, CANCELLED)
    return job_id


async def cancel(trial: Trial, job_id: str) -> None:
    """Read and cancel a job that waits."""
    async with http_client(timeout=10) as http:
        url = f"{trial.pool.urls[0]}/results/{job_id}"
        read, done = await http.get(url), await http.delete(url)
    for answer, status in ((read, "queued"), (done, "cancelled")):
        told = answer.status_code, answer.json()["status"]
        trial.require(told == (200, status), f"a full Redis answers {told} instead of {status}")
