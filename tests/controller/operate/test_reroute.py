"""Retiring a version and giving its waiting jobs to the next one: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import redis

from app.contract import TensorContract
from app.ledger.worker_ledger import ClaimedBatch
from app.redis import keys
from tests.controller.conftest import HandWorker, Serve, Served, until
from tests.pool_samples import MODEL

HandWorkers = Callable[..., HandWorker]
OLD, NEW = 2, 1
N_JOBS = 1_000


async def retire(served: Served) -> httpx.Response:
    return await served.http.post(f"/models/{MODEL}/versions/{OLD}/retire?reroute=true")


def drain(worker: HandWorker) -> list[ClaimedBatch]:
    """Run all batches of a queue; the ones that were run."""
    ran = []
    while worker.client.llen(worker.record.queue):
        batch = worker.claim()
        if batch:
            assert worker.finish(batch)
            ran.append(batch)
    return ran


async def results(served: Served, jobs: list[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for start in range(0, len(jobs), 500):
        answer = await served.http.get("/results", params={"ids": ",".join(jobs[start : start + 500])})
        found += answer.json()["jobs"]
    return found


async def test_a_thousand_waiting_jobs_move_and_each_runs_once(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    new, old = hand_worker(NEW, val_accuracy=0.8), hand_worker(OLD, val_accuracy=0.9)
    served = await serve(batches_ahead=64, max_batch_jobs=8, heartbeat_s=5.0)
    answers = await asyncio.gather(*(served.post() for _ in range(N_JOBS)))
    jobs = [answer.json()["id"] for answer in answers]
    claimed = await old.claimed()
    prefetched = old.next_batch_id()  # taken off the queue before the move, and claimed after it
    assert prefetched
    waiting = asyncio.create_task(served.post(query="?wait=30"))
    await until(lambda: client.hget(keys.BACKLOG, old.record.queue) == b"1001", "all are accepted")

    document = (await retire(served)).json()
    n_claimed = len(claimed.head.jobs)
    assert (document["rerouted_jobs"], document["open_jobs"]) == (N_JOBS + 1 - n_claimed, n_claimed)
    assert (await retire(served)).json()["rerouted_jobs"] == 0
    assert old.finish(claimed)
    assert drain(old) == []  # its messages are left, and claim nothing
    assert old.claim_of(prefetched) is None

    ran = drain(new)
    assert sum(len(batch.head.jobs) for batch in ran) == N_JOBS + 1 - n_claimed
    moved = [each for each in await results(served, jobs) if each["model_version"] == NEW]
    assert len(moved) == N_JOBS - n_claimed
    assert {(each["status"], each["rerouted_from"]) for each in moved} == {("succeeded", f"{MODEL}/{OLD}")}
    own = (await waiting).json()
    assert (own["status"], own["model_version"], own["rerouted_from"]) == ("succeeded", NEW, f"{MODEL}/{OLD}")
    assert [client.hget(keys.BACKLOG, each.record.queue) for each in (old, new)] == [b"0", b"0"]
    assert not client.exists(
        *(kind(old.record.queue) for kind in (keys.pending, keys.deadlines, keys.open_jobs))
    )


async def test_a_moved_job_outlives_the_death_of_its_new_worker(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    dying, old = hand_worker(NEW, val_accuracy=0.8), hand_worker(OLD, val_accuracy=0.9)
    served = await serve()
    job = (await served.post()).json()["id"]
    cancelled = (await served.post()).json()["id"]
    await until(lambda: client.hget(keys.BACKLOG, old.record.queue) == b"2", "both are accepted")
    assert (await retire(served)).json()["rerouted_jobs"] == 2
    assert (await served.http.delete(f"/results/{cancelled}")).status_code == 200
    [found] = await results(served, [cancelled])
    assert found["status"] == "cancelled"
    lost = await dying.claimed()
    dying.stop()
    other = hand_worker(NEW, val_accuracy=0.8, worker_id="host-other")
    while (again := await other.claimed()).batch_id != lost.batch_id:
        other.finish(again)
    assert not dying.finish(lost)
    assert other.finish(again)
    drain(other)
    [found] = await results(served, [job])
    assert (found["status"], found["model_version"]) == ("succeeded", NEW)
    assert client.hget(keys.BACKLOG, other.record.queue) == b"0"


async def test_without_a_version_of_the_same_input_nothing_is_changed(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(NEW, input=TensorContract("float32", (3,)))
    hand_worker(OLD)
    served = await serve()
    refused = await retire(served)
    assert (refused.status_code, refused.json()["code"]) == (503, "no_candidate")
    assert "nothing was changed" in refused.json()["detail"]
    rows = (await served.http.get("/workers")).json()["workers"]
    assert [each["excluded"] for each in rows] == ["", ""]
