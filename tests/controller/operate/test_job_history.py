"""`GET /jobs`: what waits and runs, and what recently finished, by filters and pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.ledger.wire import CANCELLED, JobOutcome
from app.redis import keys
from tests.controller.conftest import HandWorker, Serve, Served
from tests.pool_samples import now_ms, outcome

HandWorkers = Callable[..., HandWorker]


async def listed(served: Served, query: str = "") -> list[dict[str, Any]]:
    """All pages of a list."""
    jobs: list[dict[str, Any]] = []
    cursor = ""
    while True:
        answer = await served.http.get(f"/jobs?{query}&cursor={cursor}")
        assert answer.status_code == 200, answer.text
        page = answer.json()
        jobs += page["jobs"]
        cursor = page.get("next", "")
        if not cursor:
            return jobs


async def listed_once(served: Served, query: str, count: int) -> list[dict[str, Any]]:
    """The list, once it holds that many jobs: outcomes are added each second."""
    for _ in range(50):
        jobs = await listed(served, query)
        if len(jobs) == count:
            return jobs
        await asyncio.sleep(0.1)
    pytest.fail(f"not {count} jobs: {jobs}")


async def test_open_jobs_are_listed_oldest_first_whether_they_wait_or_run(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    first = (await served.post()).json()["id"]
    batch = await worker.claimed()
    second = (await served.post()).json()["id"]
    jobs = await listed(served, "status=open")
    assert [(job["id"], job["status"], job["attempts"]) for job in jobs] == [
        (first, "running", 1),
        (second, "queued", 0),
    ]
    assert jobs[0]["worker_id"] == worker.record.worker_id
    assert jobs[1]["queue_wait_ms"] == jobs[1]["end_to_end_ms"] > 0
    assert [job["id"] for job in await listed(served, "status=queued")] == [second]
    assert await listed(served, "status=open&min_attempts=2") == []
    await served.http.delete(f"/results/{second}")
    worker.finish(batch)
    assert await listed(served, "status=open") == []


async def test_finished_jobs_are_listed_newest_first_with_their_times_and_errors(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    good = (await served.post()).json()["id"]
    worker.finish(await worker.claimed())
    bad = (await served.post()).json()["id"]
    batch = await worker.claimed()
    failed = JobOutcome("failed", error_code="model_failed", error_detail="…")
    worker.finish(batch, outcome(jobs=[failed], finished_at_ms=now_ms() + 5))
    jobs = await listed_once(served, "", 2)
    assert [(job["id"], job["status"], job["error_code"]) for job in jobs] == [
        (bad, "failed", "model_failed"),
        (good, "succeeded", ""),
    ]
    assert (jobs[1]["inference_ms"], jobs[1]["batch_samples"], jobs[1]["attempts"]) == (1.5, 1, 1)
    assert jobs[1]["received_at_ms"] + jobs[1]["end_to_end_ms"] == pytest.approx(jobs[1]["finished_at_ms"])
    for query, found in (
        ("status=failed", [bad]),
        ("status=succeeded", [good]),
        ("code=model_failed", [bad]),
        ("code=no_such", []),
        ("version=2", []),
        ("model=Nobody", []),
        ("min_ms=100000", []),
        ("min_attempts=1", [bad, good]),
        (f"since_ms={now_ms() + 100_000}", []),
    ):
        assert [job["id"] for job in await listed(served, query)] == found, query


async def test_a_job_cancelled_while_it_waits_is_listed_once_before_and_after_its_batch_ends(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    kept, cancelled = [answer.json()["id"] for answer in await asyncio.gather(served.post(), served.post())]
    for _ in range(2):  # the second one changes nothing
        assert (await served.http.delete(f"/results/{cancelled}")).status_code == 200
    [job] = await listed_once(served, "status=cancelled", 1)
    assert (job["id"], job["error_code"], job["attempts"]) == (cancelled, "job_cancelled", 0)
    assert [each["id"] for each in await listed(served, "status=open")] == [kept]
    jobs = [JobOutcome("succeeded", [1], b""), CANCELLED]
    worker.finish(await worker.claimed(), outcome(jobs=jobs if kept.endswith(".0") else jobs[::-1]))
    assert [each["id"] for each in await listed_once(served, "", 2)] == [kept, cancelled]


async def test_pages_hold_every_job_once_even_where_many_finished_together(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    posted = await asyncio.gather(*[served.post() for _ in range(7)])
    ids = {answer.json()["id"] for answer in posted}
    for limit in (1, 2, 3, 7):
        found = [job["id"] for job in await listed(served, f"status=open&limit={limit}")]
        assert (len(found), {*found}) == (7, ids)
    failed = JobOutcome("failed", error_code="model_failed", error_detail="…")
    batch = await worker.claimed()
    assert len(batch.head.jobs) == 7
    worker.finish(batch, outcome(jobs=[failed] * 7))
    await listed_once(served, "status=failed", 7)
    for limit in (1, 2, 3, 7):
        found = [job["id"] for job in await listed(served, f"limit={limit}")]
        assert (len(found), {*found}) == (7, ids)
    assert 0 < client.pttl(keys.recent("unsuccessful")) <= 100_000


async def test_a_filter_finds_its_open_jobs_on_the_first_page_however_many_others_wait(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1)
    other = hand_worker(2)
    served = await serve(batch_hold_ms=0, max_batch_jobs=1, batches_ahead=64)
    for _ in range(9):
        await served.post(query="?version=1")
    running = (await served.post(query="?version=2")).json()["id"]
    await other.claimed()
    waiting = (await served.post(query="?version=2")).json()["id"]
    model = other.record.model_name
    [held] = await listed(served, "status=running")
    for query, found in (
        ("status=running", [running]),
        (f"status=running&since_ms={now_ms() + 1}", []),
        (f"status=running&model={model}&version=1", []),
        (f"status=open&model={model}&version=2", [running, waiting]),
        (f"status=queued&model={model}&version=2", [waiting]),
        (f"status=open&since_ms={held['received_at_ms']}", [running, waiting]),
    ):
        page = (await served.http.get(f"/jobs?{query}&limit=2")).json()
        assert [job["id"] for job in page["jobs"]] == found, query
        assert "next" not in page, query


@pytest.mark.parametrize(
    "query", ["status=odd", "cursor=x", "cursor=nan:1", "cursor=1:-1", "limit=0", "min_ms=-1"]
)
async def test_a_list_that_cannot_be_given_says_why(serve: Serve, query: str) -> None:
    served = await serve()
    answer = await served.http.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "parameter_invalid")
