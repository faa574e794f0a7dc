"""An idempotency key stands for one job, however late a command arrives and whatever controller dies meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import redis.asyncio

from app.ledger.commands import LARGE_SAMPLES_BYTES, Accept, OnceKey
from app.ledger.replay import Replay
from app.redis import keys
from app.server_errors import IdempotencyPendingError
from controller.admission.idempotency import LEASE_S
from faults.proxy import Proxy
from modelyard.client_errors import ControllerUnreachableError
from modelyard.http import AsyncClient
from modelyard.retries import RetryPolicy
from tests.conftest import RedisServer
from tests.controller.conftest import HandWorker, Serve, Served, serving, settings_for, until
from tests.pool_samples import new_batch

HandWorkers = Callable[..., HandWorker]
ServeBehind = Callable[..., Awaitable[Served]]
ROOM = {"max_samples": 8192, "batch_max_samples": 8192}
SMALL, LARGE = {"data": [1, 2]}, {"data": [[1, 2]] * (LARGE_SAMPLES_BYTES // 8)}


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[Proxy]:
    folder = Path(tempfile.mkdtemp(prefix="yard-"))  # short: a socket's path has at most 104 bytes
    with Proxy(redis_server.socket, folder / "s") as between:
        yield between
    shutil.rmtree(folder)


@pytest.fixture
async def serve_behind(proxy: Proxy) -> AsyncIterator[ServeBehind]:
    """`await serve_behind(**settings)` opens a controller behind the proxy."""
    async with AsyncExitStack() as stack:

        async def start(**fields: Any) -> Served:
            return await stack.enter_async_context(serving(settings_for(proxy.url, **fields)))

        yield start


def accepts(command: bytes) -> bool:
    """Whether it is what accepts a job with an idempotency key."""
    return b"EVALSHA" in command and b"modelyard:pending:" in command and b"modelyard:once:" in command


def start_controller(redis_url: str, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", str(port)],
        env=os.environ | {"REDIS_URL": redis_url},
        stderr=subprocess.DEVNULL,
    )


def answers(port: int) -> bool:
    """Whether a controller listens there and would accept a job."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
    except httpx.TransportError:
        return False


def job_in(command: bytes) -> str:
    """Id of the job that a command accepts, which is alone in its batch."""
    found = re.search(rb"modelyard:batch:([\w-]+)\r", command)
    assert found
    return f"{found[1].decode()}.0"


def n_scripts(client: redis.Redis) -> int:
    """Scripts that Redis has run."""
    return sum(each["calls"] for name, each in client.info("commandstats").items() if "evalsha" in name)


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small samples", "large samples"])
async def test_a_job_that_was_refused_and_arrives_late_is_not_accepted_beside_that_of_the_repeated_post(
    serve: Serve,
    serve_behind: ServeBehind,
    hand_worker: HandWorkers,
    client: redis.Redis,
    proxy: Proxy,
    body: dict[str, Any],
) -> None:
    worker = hand_worker()
    served, other = await serve_behind(redis_timeout_s=0.3, **ROOM), await serve(**ROOM)
    assert (await served.post(body)).status_code == 202  # so that Redis knows the script
    worker.finish(await worker.claimed())
    proxy.hold_at(accepts)
    refused = await served.post(body, idempotency_key="abc")
    assert (refused.status_code, refused.json()["code"]) == (503, "ledger_unavailable")
    repeated = await other.post(body, idempotency_key="abc")
    assert repeated.status_code == 202
    n_before = n_scripts(client)
    proxy.let_through()
    await until(lambda: n_scripts(client) > n_before, "the late command has run")
    late = job_in(proxy.held[0])
    assert not client.exists(keys.batch(late.removesuffix(".0")))
    worker.finish(await worker.claimed())
    assert worker.claim() is None
    assert (await other.http.get(f"/results/{late}")).status_code == 404
    assert (await other.http.get(repeated.json()["result_url"])).json()["status"] == "succeeded"
    assert (await other.post(body, idempotency_key="abc")).json()["id"] == repeated.json()["id"]
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"0"


@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small samples", "large samples"])
async def test_a_key_that_another_post_has_taken_costs_its_own_job_alone(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, body: dict[str, Any]
) -> None:
    worker = hand_worker()
    served = await serve(batch_hold_ms=1000, **ROOM)
    await served.post()
    ahead = await worker.claimed()
    lost = asyncio.create_task(served.post(body, idempotency_key="lost"))
    [name] = await until(lambda: list(client.scan_iter(keys.once("*"))), "the key is reserved")
    mates = [
        asyncio.create_task(served.post(body, idempotency_key="kept")),
        asyncio.create_task(served.post(body)),
    ]
    lane = served.services.dispatcher.lane(worker.record.queue)
    await until(lambda: len(lane.unsent) == 3, "all of them wait for the batch ahead")
    client.set(name, "another post's")
    worker.finish(ahead)
    refused = await lost
    assert (refused.status_code, refused.json()["code"]) == (503, "idempotency_pending")
    assert int(refused.headers["retry-after"]) >= 1
    kept, plain = [(await mate).json()["id"] for mate in mates]
    batch = await worker.claimed()
    assert len(batch.head.jobs) == 2
    worker.finish(batch)
    for job_id in (kept, plain):
        assert (await served.http.get(f"/results/{job_id}")).json()["status"] == "succeeded"
    assert (await served.post(body, idempotency_key="kept")).json()["id"] == kept
    assert worker.claim() is None
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"0"


@pytest.mark.parametrize(
    "found", ["", "token:digest:", "other:digest:"], ids=["gone", "its own", "another's"]
)
async def test_a_job_that_redis_lost_after_it_was_accepted_has_its_key_again(
    client: redis.Redis, redis_server: RedisServer, found: str
) -> None:
    name = keys.once("key")
    batch = new_batch(once=[OnceKey(name, "token:digest:", "digest:job")])
    if found:
        client.set(name, found)
    async with redis.asyncio.Redis.from_url(redis_server.url) as connection:
        assert await Replay(connection).batch(Accept.of(batch, 1000))
    assert client.get(name) == b"digest:job"


async def test_the_key_of_a_controller_that_was_killed_is_free_within_seconds_and_no_conflict_meanwhile(
    serve: Serve,
    hand_worker: HandWorkers,
    client: redis.Redis,
    proxy: Proxy,
    free_port: Callable[[], int],
) -> None:
    worker = hand_worker()
    other = await serve()
    port = free_port()
    process = start_controller(proxy.url, port)
    try:
        async with AsyncClient(f"http://127.0.0.1:{port}", retry=RetryPolicy(attempts=1)) as doomed:
            await until(lambda: answers(port), "it serves", 30)
            proxy.hold_at(accepts)
            post = asyncio.create_task(doomed.submit([1, 2], idempotency_key="abc"))
            await until(lambda: proxy.held, "its job is on the way to Redis")
            process.kill()
            killed_at_s = time.monotonic()
            with pytest.raises(ControllerUnreachableError):
                await post
    finally:
        process.kill()
        process.wait(10)
    transport = httpx.ASGITransport(app=other.app)
    async with AsyncClient("http://localhost", transport=transport, retry=RetryPolicy(attempts=1)) as hasty:
        with pytest.raises(IdempotencyPendingError) as meanwhile:
            await hasty.submit([1, 2], idempotency_key="abc")
    assert (meanwhile.value.retry_after_s or 0) >= 1
    async with AsyncClient("http://localhost", transport=httpx.ASGITransport(app=other.app)) as caller:
        job = await caller.submit([1, 2], idempotency_key="abc")
    assert time.monotonic() - killed_at_s < LEASE_S + 5
    n_before = n_scripts(client)
    proxy.let_through()
    await until(lambda: n_scripts(client) > n_before, "the late command has run")
    worker.finish(await worker.claimed())
    assert worker.claim() is None
    assert (await other.http.get(f"/results/{job.id}")).json()["status"] == "succeeded"


async def test_the_key_of_a_post_whose_reservation_arrived_late_is_free_within_seconds(
    serve: Serve, serve_behind: ServeBehind, hand_worker: HandWorkers, client: redis.Redis, proxy: Proxy
) -> None:
    hand_worker()
    served, other = await serve_behind(redis_timeout_s=0.3), await serve()
    proxy.hold_at(lambda command: b"modelyard:once:" in command)
    assert (await served.post(idempotency_key="abc")).status_code == 503
    proxy.let_through()
    [name] = await until(lambda: list(client.scan_iter(keys.once("*"))), "the key is reserved")
    assert (await other.post(idempotency_key="abc")).json()["code"] == "idempotency_pending"
    assert 0 < client.pttl(name) <= (LEASE_S + 1) * 1000
    await until(lambda: not client.exists(name), "the lease has ended", LEASE_S + 2)
    assert (await other.post(idempotency_key="abc")).status_code == 202
