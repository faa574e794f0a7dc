"""What open pages cost the controller: `python -m benchmarks.open_pages`.

A client predicts at a constant rate. Rounds without and with open event streams take turns, and the controller's CPU
seconds per second are compared: a controller computes on one core, so that a further hundredth of it is a hundredth of
the predictions that it could answer. Further versions are worker records that are written each second, as workers do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import redis

from app.worker_record import WorkerRecord
from benchmarks import digit_bodies, envs, machine, processes
from benchmarks.bench_pool import Pool
from benchmarks.systems import LOOPBACK, ONE_THREAD
from faults.job_load import http_client
from tests.pool_samples import CONTRACT, MODEL, publish, record

SETTLE_S = 2.0
HEARTBEAT_S = 1.0
WORKER_LIVES_S = 5.0


def main() -> int:
    """Measure, and print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=50, help="open pages (default: 50)")
    parser.add_argument("--versions", type=int, default=2, help="versions of the pool (default: 2)")
    parser.add_argument("--rate", type=int, default=200, help="predictions per second (default: 200)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each kind (default: 7)")
    parser.add_argument("--seconds", type=int, default=10, help="seconds of a round (default: 10)")
    asked = parser.parse_args()
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    model = digit_bodies.make_model(envs.ENVIRONMENTS)
    print(machine.describe(), flush=True)
    with tempfile.TemporaryDirectory(prefix="yard-", ignore_cleanup_errors=True) as folder:
        try:
            pool = Pool(Path(folder), model.tracking_uri, **ONE_THREAD)
            pool.start_redis()
            controller = pool.start_controller()
            pool.start_worker()
            body = json.dumps({"data": model.samples[0][1]})
            asyncio.run(_measure(pool, controller, body, asked))
        finally:
            processes.stop_all()
    return 0


async def _measure(pool: Pool, controller: int, body: str, asked: argparse.Namespace) -> None:
    url = f"http://{LOOPBACK}:{pool.port}"
    with pool.client() as client:
        records = [_record(number) for number in range(2, asked.versions + 1)]
        beating = asyncio.create_task(_beat(client, records))
        predicting = asyncio.create_task(_predict(f"{url}/predict?worker=1&wait=5", body, asked.rate))
        rounds: dict[int, list[float]] = {0: [], asked.pages: []}
        for turn in range(asked.rounds):
            for pages in sorted(rounds, reverse=turn % 2 == 1):
                async with _open_pages(url, pages):
                    await asyncio.sleep(SETTLE_S)
                    started_s, before_s = time.monotonic(), machine.cpu_of(controller)
                    await asyncio.sleep(asked.seconds)
                    used_s = machine.cpu_of(controller) - before_s
                    share = used_s / (time.monotonic() - started_s)
                rounds[pages].append(share)
                print(f"{pages} pages: {share:.2%} of a core", flush=True)
                if predicting.done():
                    predicting.result()
        beating.cancel()
        predicting.cancel()
    without, with_pages = rounds.values()
    cost = statistics.median(b - a for a, b in zip(without, with_pages, strict=True))
    print(
        f"{asked.pages} pages, {asked.versions} versions, {asked.rate} predictions/s: "
        f"{statistics.median(without):.2%} of a core without, {statistics.median(with_pages):.2%} with; "
        f"the median round costs {cost:.2%}"
    )


def _record(number: int) -> WorkerRecord:
    return record(number, worker_id=f"further-{number}", model_name=f"{MODEL}_{number}", input=CONTRACT)


async def _beat(client: redis.Redis, records: Sequence[WorkerRecord]) -> None:
    for beats in itertools.count():
        for each in records:
            beaten = msgspec.structs.replace(each, heartbeat_at_ms=time.time() * 1000, jobs_done=beats)
            publish(client, beaten, WORKER_LIVES_S)
        await asyncio.sleep(HEARTBEAT_S)


async def _predict(url: str, body: str, rate: int) -> None:
    """Post at a constant rate, one request after the other."""
    async with http_client() as client:
        started_s = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0.0, started_s + number / rate - time.monotonic()))
            answer = await client.post(url, content=body)
            answer.raise_for_status()


@asynccontextmanager
async def _open_pages(url: str, count: int) -> AsyncIterator[None]:
    pages = [asyncio.create_task(_read(f"{url}/events")) for _ in range(count)]
    try:
        yield
    finally:
        for page in pages:
            page.cancel()
        ended = await asyncio.gather(*pages, return_exceptions=True)
    failed = [each for each in ended if not isinstance(each, asyncio.CancelledError)]
    if failed:
        raise SystemExit(f"open_pages: {len(failed)} of {count} streams ended: {failed[0]!r}")


async def _read(url: str) -> None:
    async with http_client(timeout=None) as client, client.stream("GET", url) as answer:
        answer.raise_for_status()
        async for _ in answer.aiter_raw():
            pass


if __name__ == "__main__":
    sys.exit(main())
