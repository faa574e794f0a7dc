"""A controller in this process on a real Redis, and a worker played by hand."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from app.ledger.wakeup_message import batch_id_of
from app.ledger.wire import BatchOutcome
from app.ledger.worker_ledger import ClaimedBatch, WorkerLedger
from app.redis import keys
from app.settings import ControllerSettings, Settings
from app.worker_record import WorkerRecord
from cli.local_pool import redis_server as pool_redis
from controller.http.asgi import Controller
from controller.main import create_app
from controller.services import Services
from tests.pool_samples import RedisServer, outcome, publish, record, unpublish

HEARTBEAT_S = 0.1
RETENTION_S = 100.0


@dataclass
class Served:
    """A controller whose lifespan is open, and a client that calls it."""

    app: Controller
    http: httpx.AsyncClient

    @property
    def services(self) -> Services:
        return self.app.services

    async def post(self, body: Any = None, query: str = "", **headers: str) -> httpx.Response:
        """POST /predict; `body` is JSON unless it is bytes."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            return await self.http.post(f"/predict{query}", content=body, headers=named)
        return await self.http.post(f"/predict{query}", json=body or {"data": [1, 2]}, headers=named)


Serve = Callable[..., Awaitable[Served]]


@asynccontextmanager
async def serving(settings: ControllerSettings) -> AsyncIterator[Served]:
    app = create_app(settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.fastapi.router.lifespan_context(app.fastapi),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
    ):
        yield Served(app, http)


def settings_for(url: str, **fields: Any) -> ControllerSettings:
    defaults: dict[str, Any] = {
        "redis_url": url,
        "heartbeat_s": HEARTBEAT_S,
        "result_retention_s": RETENTION_S,
        "redis_timeout_s": 1.0,
        "batch_hold_ms": 5.0,
        "batches_ahead": 0,  # one batch at a time, so that the next one gathers
    }
    return ControllerSettings(**{**defaults, **fields})


@pytest.fixture
async def serve(redis_server: RedisServer) -> AsyncIterator[Serve]:
    """`await serve(**settings)` opens another controller on the test's Redis."""
    async with AsyncExitStack() as stack:

        async def start(**fields: Any) -> Served:
            return await stack.enter_async_context(serving(settings_for(redis_server.url, **fields)))

        yield start


class OwnRedis:
    """A Redis that a test may kill and start again; its data survive, unless it is set back."""

    def __init__(self, folder: Path) -> None:
        settings = Settings(state_dir=folder, redis_url="")
        self.options: list[str] = []
        self._folder = folder
        self._config = pool_redis.write_config(settings)
        self.url = f"unix://{settings.redis_socket}"
        self.client = redis.Redis.from_url(self.url)

    def start(self) -> None:
        command = [str(pool_redis.find_server()), str(self._config), *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def remember(self) -> None:
        """Take a copy of its data, which `set_back` puts in the place of later ones."""
        shutil.rmtree(self._folder / "copy", ignore_errors=True)
        shutil.copytree(self._config.parent, self._folder / "copy")

    async def set_back(self) -> None:
        """Kill it, and start it on what `remember` copied: it has lost all that it confirmed since."""
        self.kill()
        shutil.rmtree(self._config.parent)
        shutil.copytree(self._folder / "copy", self._config.parent)
        self.start()
        await until(self.answers, "Redis answers again")

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


@pytest.fixture
def own_redis() -> Iterator[OwnRedis]:
    folder = Path(tempfile.mkdtemp(prefix="yard-"))  # short: a socket's path has at most 104 bytes
    server = OwnRedis(folder)
    server.start()
    yield server
    server.client.close()
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


class HandWorker:
    """Plays a worker: takes batches off a queue and answers them when the test says so."""

    def __init__(self, client: redis.Redis, worker: WorkerRecord) -> None:
        self.record = worker
        self.client = client
        self._ledger = WorkerLedger(client, worker.worker_id, worker.queue, RETENTION_S)

    def start(self) -> None:
        publish(self.client, self.record)

    def stop(self) -> None:
        unpublish(self.client, self.record)

    def next_batch_id(self) -> str | None:
        message = self.client.rpop(self.record.queue)
        return batch_id_of(message) if isinstance(message, bytes) else None

    def claim(self) -> ClaimedBatch | None:
        """The next batch of the queue, claimed; None where there is none to run."""
        batch_id = self.next_batch_id()
        return self.claim_of(batch_id) if batch_id else None

    def claim_of(self, batch_id: str) -> ClaimedBatch | None:
        """A batch whose message was taken off the queue before, claimed."""
        return self._ledger.claim(batch_id)

    def finish(
        self,
        batch: ClaimedBatch,
        result: BatchOutcome | None = None,
        quarantined: dict[int, bytes] | None = None,
    ) -> bool:
        """Answer a batch; by default every job succeeds with class 7."""
        n_jobs = len(batch.head.jobs)
        return self._ledger.finish(batch, result or outcome(n_jobs, self.record.worker_id), quarantined)

    async def claimed(self) -> ClaimedBatch:
        """The next batch, waiting until there is one."""
        batch: ClaimedBatch = await until(self.claim, "a batch is on the queue")
        return batch


@pytest.fixture
def hand_worker(client: redis.Redis) -> Callable[..., HandWorker]:
    """`hand_worker(version, **record)` publishes a ready worker and returns it."""

    def start(version: int = 1, **fields: Any) -> HandWorker:
        worker = HandWorker(client, record(version, **fields))
        worker.start()
        return worker

    return start


async def until(condition: Callable[[], Any], what: str = "", timeout_s: float = 20.0) -> Any:
    """The condition's answer, as soon as it is true; fails after `timeout_s` seconds."""
    give_up_at = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > give_up_at:
            pytest.fail(f"not within {timeout_s:g} s: {what or condition}")
        await asyncio.sleep(0.005)
    return answer


def nothing_is_queued(client: redis.Redis) -> bool:
    """Whether Redis holds neither a batch nor a message nor a job in a backlog."""
    found = [*client.scan_iter(f"{keys.PREFIX}:batch:*"), *client.scan_iter(f"{keys.PREFIX}:pending:*")]
    found += list(client.scan_iter(f"{keys.PREFIX}:queue:*"))
    backlog = client.hvals(keys.BACKLOG)
    return not found and all(int(jobs) == 0 for jobs in backlog)
