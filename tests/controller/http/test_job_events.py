"""Waiting for outcomes over a real socket: server-sent events, and callers who leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from controller.http.job_events import END
from tests.controller.conftest import HandWorker, until
from tests.controller.http.conftest import OpenSite, Site, once

Event = tuple[str, str, dict[str, Any]]
HandWorkers = Callable[..., HandWorker]


@asynccontextmanager
async def calling(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://{site.address[0]}:{site.address[1]}"
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        yield http


async def post(http: httpx.AsyncClient) -> str:
    job_id: str = (await http.post("/predict", json={"data": [1, 2]})).json()["id"]
    return job_id


async def events(response: httpx.Response) -> AsyncIterator[Event]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield fields["event"], fields["id"], orjson.loads(fields["data"])
            fields = {}


async def n_waiting(http: httpx.AsyncClient) -> float:
    text = (await http.get("/metrics")).text
    return float(
        next(line for line in text.splitlines() if line.startswith("modelyard_waiting_callers ")).split()[1]
    )


async def until_waiting(http: httpx.AsyncClient, n_callers: int) -> None:
    for _ in range(1000):
        if await n_waiting(http) == n_callers:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"not {n_callers} callers wait")


@once
async def test_a_stream_tells_each_change_of_a_job_and_ends_with_its_outcome(
    open_site: OpenSite, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    site = await open_site(worker)
    async with calling(site) as http:
        job_id = await post(http)
        async with http.stream("GET", f"/results/{job_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            stream = events(response)
            assert (await anext(stream))[2]["status"] == "queued"
            batch = await worker.claimed()
            assert (await anext(stream))[2]["status"] == "running"
            worker.finish(batch)
            assert await anext(stream) == ("job", job_id, (await http.get(f"/results/{job_id}")).json())
            assert await anext(stream) == ("end", END, {})
            assert [event async for event in stream] == []
        again = await http.get(f"/results/{job_id}/events", headers={"last-event-id": END})
        assert again.status_code == 204
        assert (await http.get("/results/none/events")).json()["code"] == "job_unknown"


@once
async def test_a_stream_of_many_jobs_tells_each_and_ends_with_the_last(
    open_site: OpenSite, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    site = await open_site(worker)
    async with calling(site) as http:
        first, second = await post(http), ""
        worker.finish(await worker.claimed())
        second = await post(http)
        async with http.stream(
            "GET", "/results/events", params={"ids": f"{second},none,{first}"}
        ) as response:
            stream = events(response)
            told = [await anext(stream) for _ in range(3)]
            assert {(name, job_id, data["status"]) for name, job_id, data in told} == {
                ("job", first, "succeeded"),
                ("problem", "none", 404),
                ("job", second, "queued"),
            }
            await http.delete(f"/results/{second}")
            left = [event async for event in stream]
        assert [(name, data.get("status")) for name, _, data in left] == [("job", "cancelled"), ("end", None)]


@once
async def test_a_caller_who_leaves_ends_the_wait(open_site: OpenSite, hand_worker: HandWorkers) -> None:
    site = await open_site(hand_worker())
    async with calling(site) as http:
        job_id = await post(http)
        for path in (f"{job_id}?wait=60", f"{job_id}/events", f"?ids={job_id}&wait=60"):
            async with site.caller() as caller:
                await caller.send(
                    f"GET /results{'' if path[0] == '?' else '/'}{path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
                )
                await until_waiting(http, 1)
            await until_waiting(http, 0)


@once
async def test_a_controller_that_stops_answers_long_polls_and_ends_streams(
    open_site: OpenSite, hand_worker: HandWorkers
) -> None:
    site = await open_site(hand_worker())
    async with calling(site) as http:
        job_id = await post(http)
        poll = asyncio.create_task(http.get(f"/results/{job_id}?wait=30"))
        stream = asyncio.create_task(http.get(f"/results/{job_id}/events"))
        await until_waiting(http, 2)
        site.served.services.predict.end_waits()
        assert (await poll).json()["status"] == "queued"
        assert (await stream).text.count("event:") == 1
        await until(lambda: len(site.served.services.key_watch) == 0, "no wait is left")
