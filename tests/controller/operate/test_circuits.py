"""The circuit breaker: a version whose jobs keep failing is left, and comes back once its example succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from app.ledger.wire import JobOutcome
from app.server_errors import INPUT_CODES
from controller.operate.circuits import MOST_DEATHS, MOST_DEATHS_ON_TRIAL
from tests.controller.conftest import HandWorker, Serve, Served
from tests.pool_samples import outcome

HandWorkers = Callable[..., HandWorker]
FAILED = JobOutcome("failed", error_code="model_failed", error_detail="…")
EXAMPLE = '{"data":[[1,2]]}'
BEST, OTHER = 2, 1


async def run_jobs(
    served: Served, worker: HandWorker, count: int, *, well: bool, failed: JobOutcome = FAILED
) -> None:
    """Have jobs of a worker's version run, one batch each."""
    for _ in range(count):
        answer = await served.post(query=f"?worker={worker.record.worker}")
        assert answer.status_code == 202, answer.text
        worker.start()
        worker.finish(await worker.claimed(), None if well else outcome(jobs=[failed]))


async def choice(served: Served) -> int:
    await served.services.watcher.refresh()
    candidates = served.services.watcher.view.snapshot.default
    assert candidates
    return candidates.routes[0].candidate.model_version


async def chosen_once(served: Served, version: int, *workers: HandWorker) -> None:
    """Return once routing chooses a version."""
    for _ in range(100):
        for worker in workers:
            worker.start()
        if await choice(served) == version:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"version {version} is not chosen")


async def decisions(served: Served, count: int) -> list[str]:
    """What was logged of circuits, newest first, once there is `count`: a circuit opens before that is logged."""
    kinds: list[str] = []
    for _ in range(100):
        listed = (await served.http.get("/decisions")).json()["decisions"]
        kinds = [each["kind"] for each in listed if each["kind"].startswith("circuit")]
        if len(kinds) >= count:
            break
        await asyncio.sleep(0.05)
    return kinds


async def test_a_failing_version_is_left_and_comes_back_with_its_example(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    best = hand_worker(BEST, val_accuracy=0.9, example=EXAMPLE)
    other = hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_failures=3, circuit_pause_s=0.2, heartbeat_s=1.0)
    assert await choice(served) == BEST
    await run_jobs(served, best, 2, well=False)
    await run_jobs(served, best, 1, well=True)
    await run_jobs(served, best, 2, well=False)
    assert await choice(served) == BEST  # never three in a row
    await run_jobs(served, best, 1, well=False)
    await chosen_once(served, OTHER, best, other)
    rows = {each["model_version"]: each for each in (await served.http.get("/workers")).json()["workers"]}
    assert (rows[BEST]["excluded"], rows[BEST]["circuit_open"]) == ("circuit_open", True)
    assert rows[BEST]["excluded_why"] == "3 jobs in a row failed"
    probe = await best.claimed()
    best.finish(probe, outcome(jobs=[FAILED]))
    assert await choice(served) == OTHER
    best.start()
    again = await best.claimed()
    best.finish(again)
    await chosen_once(served, BEST, best, other)
    assert await decisions(served, 2) == ["circuit_closed", "circuit_opened"]


@pytest.mark.parametrize("code", sorted(INPUT_CODES))
async def test_refused_input_neither_opens_a_circuit_nor_ends_a_row_of_failures(
    serve: Serve, hand_worker: HandWorkers, code: str
) -> None:
    best, other = hand_worker(BEST, val_accuracy=0.9), hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_failures=3, circuit_pause_s=100.0, heartbeat_s=1.0)
    refused = JobOutcome("failed", error_code=code, error_detail="…")
    await run_jobs(served, best, 2, well=False)
    await run_jobs(served, best, 4, well=False, failed=refused)
    assert await choice(served) == BEST
    await run_jobs(served, best, 1, well=False)
    await chosen_once(served, OTHER, best, other)
    rows = {each["model_version"]: each for each in (await served.http.get("/workers")).json()["workers"]}
    assert rows[BEST]["excluded_why"] == "3 jobs in a row failed"
    labels = f'{{model="{rows[BEST]["model_name"]}",version="{BEST}",worker="{rows[BEST]["worker"]}"}}'
    assert f"modelyard_version_failures_total{labels} 3.0" in (await served.http.get("/metrics")).text


async def test_a_version_that_kills_its_workers_is_left_after_fewer_jobs(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    best, other = hand_worker(BEST, val_accuracy=0.9), hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_failures=1000, circuit_pause_s=100.0, heartbeat_s=1.0)
    killed = JobOutcome("failed", error_code="job_quarantined", error_detail="…")
    await run_jobs(served, best, 2, well=False, failed=killed)
    await run_jobs(served, best, 1, well=True)
    await run_jobs(served, best, 2, well=False, failed=killed)
    assert await choice(served) == BEST  # never three in a row
    await run_jobs(served, best, 1, well=False, failed=killed)
    await chosen_once(served, OTHER, best, other)
    rows = {each["model_version"]: each for each in (await served.http.get("/workers")).json()["workers"]}
    assert rows[BEST]["excluded_why"] == "3 jobs in a row killed their workers"


async def test_a_version_whose_example_succeeds_but_whose_jobs_still_kill_workers_is_left_after_one_job(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    best, other = hand_worker(BEST, val_accuracy=0.9, example=EXAMPLE), hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_failures=1000, circuit_pause_s=0.2, heartbeat_s=1.0)
    killed = JobOutcome("failed", error_code="job_quarantined", error_detail="…")
    await run_jobs(served, best, 3, well=False, failed=killed)
    await chosen_once(served, OTHER, best, other)
    best.finish(await best.claimed())
    await chosen_once(served, BEST, best, other)
    await run_jobs(served, best, 1, well=False, failed=killed)
    await chosen_once(served, OTHER, best, other)
    rows = {each["model_version"]: each for each in (await served.http.get("/workers")).json()["workers"]}
    assert rows[BEST]["excluded_why"] == "a job killed its workers again"
    best.finish(await best.claimed())
    await chosen_once(served, BEST, best, other)
    await run_jobs(served, best, 20, well=True)
    await run_jobs(served, best, 1, well=False, failed=killed)
    assert await choice(served) == BEST  # it is trusted again


async def test_a_version_whose_workers_all_keep_dying_is_left_before_any_of_its_jobs_has_ended(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    well = hand_worker(BEST, val_accuracy=0.9, worker_id="well", deaths_in_a_row=MOST_DEATHS - 1)
    dying = hand_worker(BEST, val_accuracy=0.9, worker_id="dying", deaths_in_a_row=MOST_DEATHS)
    other = hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_pause_s=100.0, heartbeat_s=1.0)
    assert await choice(served) == BEST
    well.stop()
    await chosen_once(served, OTHER, dying, other)
    rows = {each["model_version"]: each for each in (await served.http.get("/workers")).json()["workers"]}
    assert rows[BEST]["excluded_why"] == "its workers died 7 times in a row while they ran jobs"
    assert (await served.post(query="?worker=2")).status_code == 202
    dying.finish(await dying.claimed())  # a request that names the version reaches it


async def test_after_its_example_has_succeeded_only_new_deaths_open_the_circuit_again(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    fields = {"val_accuracy": 0.9, "example": EXAMPLE}
    dying = hand_worker(BEST, deaths_in_a_row=MOST_DEATHS, **fields)
    other = hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_pause_s=0.2, heartbeat_s=1.0)
    await chosen_once(served, OTHER, dying, other)
    dying.finish(await dying.claimed())
    assert await decisions(served, 2) == ["circuit_closed", "circuit_opened"]
    assert await choice(served) == BEST  # its last record is older
    later_ms = dying.record.heartbeat_at_ms + 60_000
    dying = hand_worker(BEST, deaths_in_a_row=MOST_DEATHS_ON_TRIAL, heartbeat_at_ms=later_ms, **fields)
    await chosen_once(served, OTHER, dying, other)


async def test_half_of_many_jobs_failing_opens_a_circuit_too(serve: Serve, hand_worker: HandWorkers) -> None:
    best, other = hand_worker(BEST, val_accuracy=0.9), hand_worker(OTHER, val_accuracy=0.8)
    served = await serve(circuit_failures=1000, circuit_pause_s=100.0, heartbeat_s=1.0)
    for _ in range(10):
        await run_jobs(served, best, 1, well=False)
        await run_jobs(served, best, 1, well=True)
    await chosen_once(served, OTHER, best, other)


async def test_the_last_version_of_a_model_is_chosen_although_it_fails(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    only = hand_worker(BEST)
    served = await serve(circuit_failures=3, circuit_pause_s=100.0, heartbeat_s=1.0)
    await run_jobs(served, only, 4, well=False)
    for _ in range(40):
        [row] = (await served.http.get("/workers")).json()["workers"]
        if row["circuit_open"]:
            break
        await asyncio.sleep(0.05)
    assert (row["circuit_open"], row["excluded"], row["chosen"]) == (True, "", True)
    assert (await served.post()).status_code == 202
