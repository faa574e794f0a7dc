"""An autoscaler that reads only `GET /scale/{model}/{version}` starts and stops real workers."""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import dataclass, field

from tests.conftest import RedisServer
from tests.controller.conftest import Served, serving, settings_for, until
from tests.workers.worker_processes import LIGHT, LIGHT_MODEL, Start

SCALE = f"/scale/{LIGHT_MODEL}/1"
LEAST, MOST = 1, 2
COOL_DOWN_S = 1.0  # a worker is stopped when none has been wanted for so long
CALLERS = 8
LIMIT_S = 120.0  # of each wait


@dataclass
class Autoscaler:
    """Keeps as many workers as `wanted_replicas` says, within bounds; quick up, slow down."""

    served: Served
    start_worker: Start
    workers: list[subprocess.Popen[str]] = field(default_factory=list)
    stopped: list[subprocess.Popen[str]] = field(default_factory=list)
    live: int = 0

    async def run(self) -> None:
        """Read and follow until cancelled."""
        surplus_since_s = time.monotonic()
        while True:
            answer = (await self.served.http.get(SCALE)).raise_for_status().json()
            self.live = answer["live_replicas"]
            wanted = min(max(answer["wanted_replicas"], LEAST), MOST)
            while len(self.workers) < wanted:
                self.start()
            if not self.live == len(self.workers) > wanted:  # a worker that starts is not stopped
                surplus_since_s = time.monotonic()
            elif time.monotonic() - surplus_since_s > COOL_DOWN_S:
                self._stop()
            await asyncio.sleep(0.1)

    def start(self) -> None:
        """Start a worker."""
        self.workers.append(self.start_worker("1", **LIGHT, ALLOW_PICKLE_MODELS="false"))

    def _stop(self) -> None:
        self.stopped.append(self.workers.pop())
        self.stopped[-1].terminate()


@dataclass
class Burst:
    """Callers that post one job after another, each waiting for its outcome.

    Attributes:
        succeeded: Number of jobs that succeeded.
        otherwise: Every other answer.
    """

    served: Served
    succeeded: int = 0
    otherwise: list[object] = field(default_factory=list)
    is_over: bool = False

    async def call(self) -> None:
        """Post until the burst is over."""
        while not self.is_over:
            answer = await self.served.post(query="?wait=60&deadline=300")
            if answer.status_code == 200 and answer.json()["status"] == "succeeded":
                self.succeeded += 1
            else:
                self.otherwise.append(answer.json())


async def test_an_autoscaler_that_reads_only_scale_follows_a_burst_and_loses_nothing(
    start_worker: Start, redis_server: RedisServer
) -> None:
    # Any job that is seen waiting calls for another worker.
    settings = settings_for(redis_server.url, heartbeat_s=0.5, scale_wait_s=0.0001)
    async with serving(settings) as served:
        autoscaler, burst = Autoscaler(served, start_worker), Burst(served)
        autoscaler.start()  # a version is unknown before its first worker
        await until(
            lambda: served.services.watcher.view.snapshot.ready_versions, "the first worker is ready", LIMIT_S
        )
        scaling = asyncio.create_task(autoscaler.run())
        callers = [asyncio.create_task(burst.call()) for _ in range(CALLERS)]
        try:
            await until(
                lambda: autoscaler.live == MOST or scaling.done(),
                "the burst has started a second worker",
                LIMIT_S,
            )
        finally:
            burst.is_over = True  # otherwise the controller would never stop
        assert not scaling.done(), scaling.exception()
        await asyncio.gather(*callers)
        await until(lambda: autoscaler.stopped, "a worker is stopped after the burst", LIMIT_S)
        await until(lambda: autoscaler.stopped[0].poll() is not None, "it has ended", LIMIT_S)
        await until(lambda: autoscaler.live == LEAST, "one worker is left", LIMIT_S)
        assert not scaling.done()
        scaling.cancel()
        assert len(autoscaler.workers) == LEAST
        assert (await served.post(query="?wait=60")).json()["status"] == "succeeded"
        assert (await served.http.get(SCALE)).json()["jobs"] == 0
    assert autoscaler.stopped[0].returncode == 0
    assert burst.succeeded > 0
    assert not burst.otherwise
