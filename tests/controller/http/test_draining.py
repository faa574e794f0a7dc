"""A controller that is told to stop: who waits is answered, new work goes elsewhere, nothing is cut off."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from tests.conftest import RedisServer
from tests.controller.conftest import HandWorker, Serve, until

HandWorkers = Callable[..., HandWorker]
N_CALLERS = 50


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
    worker = hand_worker()
    async with process_serving(redis_server, free_port(), MODELYARD_LAME_DUCK_S="0") as (process, http):
        half = await asyncio.open_connection(http.base_url.host, http.base_url.port)
        half[1].write(b"POST /predict HTTP/1.1\r\nhost: localhost\r\n")
        waiting = asyncio.create_task(http.post("/predict?wait=60", json={"data": [1, 2]}))
        batch = await worker.claimed()
        process.send_signal(signal.SIGTERM)
        await until(lambda: status(f"{http.base_url}/healthz") is None, "nothing listens any more", 60)
        half[1].write(b"content-length: 14\r\n\r\n" + b'{"data":[1,2]}')
        rest = await half[0].read()
        half[1].close()
        assert worker.finish(batch)
        answer = await waiting
        assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
        assert answer.headers["connection"] == "close"
        assert await process.wait() == 0
    # Refused, or accepted where the controller was not draining yet; never reset.
    assert rest.startswith((b"HTTP/1.1 503", b"HTTP/1.1 202"))
    assert b"connection: close" in rest


async def test_a_lame_duck_serves_on_with_last_answers_until_a_second_signal(
    redis_server: RedisServer, hand_worker: HandWorkers, free_port: Callable[[], int]
) -> None:
    worker = hand_worker()
    async with process_serving(redis_server, free_port(), MODELYARD_LAME_DUCK_S="300") as (process, http):
        before = await http.post("/predict", json={"data": [1, 2]})
        waiting = asyncio.create_task(http.post("/predict?wait=60", json={"data": [1, 2]}))
        batches = [await worker.claimed(), await worker.claimed()]
        process.send_signal(signal.SIGTERM)
        await until(lambda: status(f"{http.base_url}/readyz/read") == 503, "the probe says that it stops", 60)
        assert (await http.get("/readyz")).json()["reasons"] == ["the controller is stopping"]
        during = await http.post("/predict", json={"data": [1, 2]})
        # A body with an idempotency key goes uvicorn's way.
        slowly = await http.post("/predict", json={"data": [1, 2]}, headers={"idempotency-key": "k"})
        read = await http.get(before.headers["location"])
        assert all(worker.finish(batch) for batch in batches)
        answers = [during, slowly, read, await waiting]
        assert "connection" not in before.headers
        assert [answer.status_code for answer in answers] == [202, 202, 200, 200]
        assert [answer.headers["connection"] for answer in answers] == ["close"] * 4
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_connections_that_wait_to_be_accepted_when_the_listener_closes_are_answered(
    redis_server: RedisServer, hand_worker: HandWorkers, free_port: Callable[[], int]
) -> None:
    hand_worker()
    async with process_serving(redis_server, free_port(), MODELYARD_LAME_DUCK_S="0") as (process, http):
        process.send_signal(signal.SIGSTOP)
        where = http.base_url.host, http.base_url.port
        callers = [await asyncio.open_connection(*where) for _ in range(N_CALLERS)]
        for _, writer in callers:
            writer.write(
                b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 14\r\n\r\n" + b'{"data":[1,2]}'
            )
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        answers = await asyncio.gather(*(reader.read() for reader, _ in callers))
        for _, writer in callers:
            writer.close()
        assert {answer[:12] for answer in answers} <= {b"HTTP/1.1 202", b"HTTP/1.1 503"}
        assert await asyncio.wait_for(process.wait(), 60) == 0


async def test_ctrl_c_stops_a_controller_without_a_lame_duck(
    redis_server: RedisServer, hand_worker: HandWorkers, free_port: Callable[[], int]
) -> None:
    hand_worker()
    async with process_serving(redis_server, free_port(), MODELYARD_LAME_DUCK_S="300") as (process, _):
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 60) == 0


@asynccontextmanager
async def process_serving(
    redis_server: RedisServer, port: int, **variables: str
) -> AsyncIterator[tuple[Process, httpx.AsyncClient]]:
    """`modelyard serve`, ready, and a client; killed where the block does not see its end."""
    environment = os.environ | {"REDIS_URL": redis_server.url, "MODELYARD_DRAIN_S": "60"} | variables
    command = (sys.executable, "-m", "cli", "serve", "--port", str(port))
    process = await asyncio.create_subprocess_exec(*command, env=environment)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            await until(lambda: status(f"{http.base_url}/readyz") == 200, "the controller is ready", 60)
            yield process, http
    finally:
        if process.returncode is None:
            # Left alone it would write its job into the Redis of the next test.
            process.kill()
            await process.wait()


def status(url: str) -> int | None:
    """Status of the answer, or None where nothing listens, or stopped to while this was asked."""
    try:
        return httpx.get(url).status_code
    except (httpx.NetworkError, httpx.RemoteProtocolError):
        return None
