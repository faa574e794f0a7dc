"""An accepted job ends in one outcome, whatever is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
import pytest

from modelyard import Client
from tests.e2e.conftest import Digits, Pool

N_JOBS = 1000
SENDERS = 20
FINAL = {"succeeded", "failed", "expired", "cancelled"}


async def accept(url: str, body: dict[str, object], when_half: Callable[[], object]) -> list[str]:
    """Have `N_JOBS` accepted, calling `when_half` halfway, and return their ids. A 503 is tried again."""
    ids: list[str] = []

    async def send(http: httpx.AsyncClient, count: int) -> None:
        for _ in range(count):
            while (answer := await http.post("/predict?worker=2&deadline=300", json=body)).status_code == 503:
                assert "retry-after" in answer.headers
                await asyncio.sleep(0.2)
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["id"])
            if len(ids) == N_JOBS // 2:
                when_half()

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        await asyncio.gather(*(send(http, N_JOBS // SENDERS) for _ in range(SENDERS)))
    return ids


async def outcomes(url: str, ids: list[str]) -> Counter[str]:
    """Statuses of the jobs, once all are final."""
    limit = asyncio.Semaphore(SENDERS)

    async def status(http: httpx.AsyncClient, job_id: str) -> str:
        async with limit:
            while True:
                job = (await http.get(f"/results/{job_id}?wait=20")).json()
                if job["status"] in FINAL:
                    return str(job["status"])

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        waiting: list[Awaitable[str]] = [status(http, job_id) for job_id in ids]
        return Counter(await asyncio.gather(*waiting))


@pytest.mark.timeout(300)
async def test_a_killed_worker_loses_none_of_a_thousand_jobs(pool: Pool, digits: Digits) -> None:
    first, second = pool.worker(2, 2), pool.worker(2, 2)
    url = pool.controller()
    pool.wait_for_workers(url, 2)

    def kill_both() -> None:
        first.kill()
        second.kill()
        pool.worker(2, 2)

    # A dead worker's record lives for three heartbeats; then the queue takes nothing until the new one is there.
    ids = await accept(url, digits.body(0), kill_both)
    assert len(set(ids)) == N_JOBS
    assert await outcomes(url, ids) == {"succeeded": N_JOBS}
    async with httpx.AsyncClient(base_url=url) as http:
        rows = (await http.get("/workers")).json()["workers"]
    assert [row["backlog_jobs"] for row in rows] == [0]


@pytest.mark.timeout(300)
async def test_a_killed_controller_leaves_its_jobs_to_another(
    served: tuple[Pool, str, Client], digits: Digits
) -> None:
    pool, other, _ = served
    url = pool.controller()
    doomed = pool.processes[-1]
    ids = await accept(url, digits.body(1), lambda: None)
    doomed.kill()
    assert await outcomes(other, ids) == {"succeeded": N_JOBS}
