"""Fits what each process spends on a batch and on a job to what pools on this machine were seen to spend.

Only CPU time, bytes and batches are taken from the pool, never its throughput, at other numbers of connections
than those at which the predictions are checked.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from struct import Struct

import numpy as np

from benchmarks import machine, wrk_load
from benchmarks.simulation import costs
from benchmarks.simulation.costs import Cost, Costs
from benchmarks.simulation.real import Point

CONNECTIONS = (1, 8, 32, 128)
N_MESSAGES = 1000
ASLEEP_S = 0.001  # two processes that never rest share a core, where waking takes a fifth of the time
CLOCK = Struct("d")


def calibrate(points: Sequence[Point], path: Path) -> None:
    """Write the costs that pools of one worker showed, and all points."""
    about = {
        "measured_at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine.describe(),
        "load": wrk_load.version(),
        "points": [point.as_dict() for point in points],
    }
    costs.write(path, fit([point for point in points if point.workers == 1], wake_up_us()), about)


def fit(points: Sequence[Point], wake_us: float) -> Costs:
    """Costs by least squares: what a request costs is its job's cost and its part of its batch's."""
    loaded = [point for point in points if point.connections > 1]
    return Costs(
        controller=_fit(points, [point.cpu_us["controller"] for point in points]),
        worker=_fit(points, [point.cpu_us["worker"] for point in points]),
        redis=_fit(points, [point.cpu_us["redis"] for point in points]),
        to_redis=_fit(points, [point.to_redis_bytes for point in points]),
        from_redis=_fit(points, [point.from_redis_bytes for point in points]),
        client_us=median(point.cpu_us["generator"] for point in loaded),
        wake_us=wake_us,
    )


def _fit(points: Sequence[Point], per_request: Sequence[float]) -> Cost:
    # Each row divided by what was measured, so that relative errors count.
    rows = [[1 / (point.jobs_per_batch * y), 1 / y] for point, y in zip(points, per_request, strict=True)]
    (batch, job), *_ = np.linalg.lstsq(np.array(rows), np.ones(len(rows)), rcond=None)
    return Cost(max(float(batch), 0.0), max(float(job), 0.0))


def wake_up_us() -> float:
    """Median time from a message on a socket to the moment at which its reader, asleep for a while, runs."""
    near, far = socket.socketpair()
    child = os.fork()
    if child == 0:
        near.close()
        while far.recv(1):
            far.send(CLOCK.pack(time.monotonic()))
        os._exit(0)
    far.close()
    taken_s = []
    for _ in range(N_MESSAGES):
        time.sleep(ASLEEP_S)
        sent_s = time.monotonic()
        near.send(b"x")
        (read_s,) = CLOCK.unpack(near.recv(CLOCK.size))
        taken_s.append(float(read_s) - sent_s)
    near.close()
    os.waitpid(child, 0)
    return median(taken_s) * 1e6
