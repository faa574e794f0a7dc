"""Faults around the pool: wrong clocks, an unavailable registry."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

from app.settings import HEARTBEATS_TO_LIVE
from faults.fault_pool import Pool, Supervised
from faults.job_load import good_jobs, http_client
from faults.rows.redis import PLAN
from faults.table import fault
from faults.trial import ToolMissingError, Trial

MINUTES_OFF = 5
DEADLINE_S = 60
LISTED_S = 5.0
NOWHERE = "http://127.0.0.1:9"  # the discard port: no server listens


@fault("clock-off", "clock of one worker and one controller off by 5 min, both ways", PLAN)
async def clock_off(trial: Trial) -> None:
    """Only Redis's clock is used across processes: deadlines, liveness, ages and latencies stay right."""
    pool = trial.pool
    offsets_s = (60 * MINUTES_OFF,) if trial.short else (60 * MINUTES_OFF, -60 * MINUTES_OFF)
    for offset_s in offsets_s:
        controller, worker = pool.add_controller(**faked(offset_s)), pool.add_worker(1, **faked(-offset_s))
        try:
            for process in (controller, worker):
                process.start()
            await asyncio.to_thread(pool.wait_until_well)
            url = pool.url(controller)
            query = f"worker=1&deadline={DEADLINE_S}"
            async with trial.load(good_jobs(0.005), query=query, urls=partial(list, [url])):
                await asyncio.sleep(HEARTBEATS_TO_LIVE + (1 if trial.short else 10))
                await figures_are_right(trial, url, worker)
        finally:
            await asyncio.to_thread(pool.remove, worker)
            await asyncio.to_thread(pool.remove, controller)


def faked(offset_s: int) -> dict[str, str]:
    """Variables that shift a process's clock and leave its monotonic clock alone.

    Raises:
        ToolMissingError: libfaketime is not installed.
    """
    found = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
    if not found:
        raise ToolMissingError("needs libfaketime: install the system package faketime")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME": f"{offset_s:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }


async def figures_are_right(trial: Trial, url: str, worker: Supervised) -> None:
    """Check that no reported time is minutes off."""
    live, give_up_at = len(trial.pool.workers), time.monotonic() + LISTED_S
    async with http_client(base_url=url, timeout=30) as http:
        (row,) = (await http.get("/workers")).json()["workers"]
        # On a busy machine a heartbeat may be late, with any clock; with a wrong one all of them would be.
        while row["live_workers"] != live and time.monotonic() < give_up_at:
            await asyncio.sleep(0.1)
            (row,) = (await http.get("/workers")).json()["workers"]
        job = (await http.post("/predict?worker=1&wait=20", json={"data": [[1.0, 0.0, 0.0, 0.0]]})).json()
    trial.require(row["live_workers"] == live, f"{row['live_workers']} of {live} workers are live")
    trial.require(any(each["main_pid"] == worker.pid for each in row["replicas"]), "the worker is not listed")
    spread_ms = [each["heartbeat_at_ms"] for each in row["replicas"]]
    trial.require(max(spread_ms) - min(spread_ms) < 10_000, "the workers' heartbeats are minutes apart")
    trial.require(row["oldest_job_age_s"] < 30, f"the oldest job is {row['oldest_job_age_s']} s old")
    for name in ("queue_wait_ms", "end_to_end_ms"):
        trial.require(0 <= job.get(name, -1) < 30_000, f"{name} is {job.get(name)}")


@fault("mlflow-away", "MLflow unavailable while workers run and while one starts", PLAN, in_tests=False)
async def mlflow_away(trial: Trial) -> None:
    """Running workers need no registry; a starting worker exits with a line that names the cause."""
    pool = trial.pool
    worker = pool.add_worker(MLFLOW_TRACKING_URI=NOWHERE)
    started_at = time.monotonic()
    worker.start()
    try:
        async with trial.load(good_jobs()):
            await trial.until(lambda: len(worker.exits) > (0 if trial.short else 2), "it has ended", 120)
        trial.note(f"a worker without a registry exited after {worker.exits[0][0] - started_at:.0f} s")
        statuses = {status for _, status in worker.exits}
        trial.require(statuses == {1}, f"it ended with {statuses}")
        last_lines = [line for line in worker.log.read_text().splitlines() if "MLflow registry" in line]
        trial.require(
            last_lines and NOWHERE in last_lines[0], "its log does not say that the registry is unavailable"
        )
        trial.require("Traceback" not in worker.log.read_text(), "its log has a traceback")
        give_registry_back(pool, worker)
        if not trial.short:
            await trial.until(lambda: pool.is_ready(worker), "it is ready once the registry is back", 60)
    finally:
        await asyncio.to_thread(pool.remove, worker)


def give_registry_back(pool: Pool, worker: Supervised) -> None:
    """Let the worker find the registry from its next start on."""
    worker.environment["MLFLOW_TRACKING_URI"] = pool.workers[0].environment["MLFLOW_TRACKING_URI"]
