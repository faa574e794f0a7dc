"""The controller's CPU cost of many model versions: routing, and the refresh of its snapshot."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from app.contract import TensorContract
from app.redis import keys
from app.settings import ControllerSettings
from app.worker_record import WorkerRecord, encode_record
from controller.main import create_app
from controller.pool_snapshot import Snapshot
from controller.routing import routes
from controller.selector import Selector

ROUTES = 20_000
REFRESHES = 20
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Cost:
    """The CPU times.

    Attributes:
        route_us: Of routing a request by policy.
        route_forced_us: Of routing a request that names a worker number.
        refresh_ms: Of reading the pool once.
    """

    route_us: float
    route_forced_us: float
    refresh_ms: float


def measure(n_versions: int, n_workers: int) -> Cost:
    """Publish workers of many versions in a private Redis, and let a controller read them."""
    with _redis() as url:
        with redis.Redis.from_url(url) as client:
            _publish(client, n_versions, n_workers)
        return asyncio.run(_measure(url))


async def _measure(url: str) -> Cost:
    app = create_app(ControllerSettings(redis_url=url, heartbeat_s=60))
    async with app.fastapi.router.lifespan_context(app.fastapi):
        watcher = app.services.watcher
        took_ms = []
        for _ in range(REFRESHES):
            start_s = time.process_time()
            await watcher.refresh()
            took_ms.append((time.process_time() - start_s) * 1000)
        snapshot = watcher.view.snapshot
    return Cost(
        _route_us(snapshot, Selector(None, None, None)),
        _route_us(snapshot, Selector(1, None, None)),
        statistics.median(took_ms),
    )


def _route_us(snapshot: Snapshot, selector: Selector) -> float:
    best_s = min(_time(lambda: routes(snapshot, selector, 30.0)) for _ in range(5))
    return best_s / ROUTES * 1e6


def _time(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    for _ in range(ROUTES):
        call()
    return time.perf_counter() - start_s


def _publish(client: redis.Redis, n_versions: int, n_workers: int) -> None:
    pipe = client.pipeline()
    now_ms = time.time() * 1000
    for number in range(n_workers):
        version = number % n_versions + 1
        record = WorkerRecord(
            worker_id=f"host-{number}",
            worker=version,
            queue=keys.queue_name("Digits", version),
            model_name="Digits",
            model_version=version,
            run_id="run",
            val_accuracy=version / (n_versions + 1),
            input=TensorContract("float32", (1, 28, 28)),
            state="ready",
            started_at_ms=now_ms,
            heartbeat_at_ms=now_ms,
        )
        pipe.set(keys.worker(record.worker_id), encode_record(record))
        pipe.zadd(keys.WORKERS, {record.worker_id: now_ms + HOUR_MS})
        pipe.hset(keys.NUMBERS, record.queue, version)
    pipe.execute()


@contextmanager
def _redis() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="yard-") as folder:
        socket = Path(folder) / "r.sock"
        options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder)
        process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        try:
            while not socket.exists():
                time.sleep(0.01)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()
