"""A controller that is told to stop: who waits is answered, new work goes elsewhere, nothing is cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable

import httpx

from tests.conftest import RedisServer
from tests.controller.conftest import HandWorker, Serve, until

HandWorkers = Callable[..., HandWorker]


async def test_a_caller_who_waits_too_long_is_told_where_the_outcome_will_be(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve(drain_s=0.1)
    other = await serve()
    first = asyncio.create_task(served.post(query="?wait=30"))
    batch = await worker.claimed()
    # The second is not even sent yet when the controller is told to stop: the first one's batch is outstanding.
    second = asyncio.create_task(served.post(query="?wait=30", Idempotency_Key="k"))
    await until(lambda: len(served.services.dispatcher.jobs()) == 2, "both wait")
    read = asyncio.create_task(served.http.get(f"/results/{batch.batch_id}.0?wait=30"))
    served.app.drain()
    for answer in (await first, await second):
        told = answer.json()
        assert (answer.status_code, told["code"]) == (503, "draining")
        assert answer.headers["location"] == told["result_url"] == f"/results/{told['id']}"
        assert answer.headers["retry-after"] == "1"
        assert (await other.http.get(told["result_url"])).json()["status"] in ("queued", "running")
    assert (await read).json()["status"] in ("queued", "running")
    again = await other.post(Idempotency_Key="k")
    assert again.json()["id"] == told["id"]


async def test_a_repeated_post_that_waits_is_told_the_same(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve(drain_s=0.1)
    job_id = (await served.post(Idempotency_Key="k")).json()["id"]
    repeated = asyncio.create_task(served.post(query="?wait=30", Idempotency_Key="k"))
    await asyncio.sleep(0)
    served.services.predict.end_waits()
    assert ((await repeated).status_code, (await repeated).json()["id"]) == (503, job_id)


async def test_a_stopping_controller_refuses_new_work_and_is_not_ready(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve()
    served.app.drain()
    answer = await served.post()
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert "id" not in answer.json()
    ready = await served.http.get("/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["the controller is stopping"])


async def test_a_caller_has_its_outcome_from_a_server_that_was_told_to_stop(
    redis_server: RedisServer, hand_worker: HandWorkers, free_port: Callable[[], int]
) -> None:
    worker, url = hand_worker(), f"http://127.0.0.1:{(port := free_port())}"
    environment = os.environ | {"REDIS_URL": redis_server.url, "MODELYARD_DRAIN_S": "60"}
    command = (sys.executable, "-m", "cli", "serve", "--port", str(port))
    process, answer = await asyncio.create_subprocess_exec(*command, env=environment), None
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        try:
            await until(lambda: status(f"{url}/readyz") == 200, "the controller is ready", 60)
            waiting = asyncio.create_task(http.post("/predict?wait=60", json={"data": [1, 2]}))
            batch = await worker.claimed()
            process.send_signal(signal.SIGTERM)
            await until(lambda: status(f"{url}/healthz") is None, "nothing listens any more", 60)
            assert worker.finish(batch)
            answer = await waiting
        finally:
            if answer is None and process.returncode is None:
                # Left alone it would write its job into the Redis of the next test.
                process.kill()
                await process.wait()
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["connection"] == "close"
    assert await process.wait() == 0


def status(url: str) -> int | None:
    """Status of the answer, or None where nothing listens, or stopped to while this was asked."""
    try:
        return httpx.get(url).status_code
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return None
