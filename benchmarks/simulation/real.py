"""A real pool under load: what it answers, in how many batches, and what each process spends on it."""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import redis

from benchmarks import digit_bodies, envs, machine, processes
from benchmarks.systems import LOOPBACK, SYSTEMS, Command, Place
from benchmarks.wrk_load import Generator, Target

MODELYARD = next(system for system in SYSTEMS if system.name == "modelyard")
ALL_READY_LIMIT_S = 60.0
WARM_S = 1


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        turn: Which of the rounds, in each of which everything is measured once.
        jobs_per_batch: Mean.
        cpu_us: Per request, by process; `generator` is wrk.
        to_redis_bytes: Per request, as is `from_redis_bytes`.
        steal: As in `machine.Noise`, as is `foreign`.
        stolen: CPU time that the hypervisor took, by that which it left to processes.
    """

    turn: int
    workers: int
    connections: int
    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    jobs_per_batch: float
    cpu_us: dict[str, float]
    to_redis_bytes: float
    from_redis_bytes: float
    steal: float
    foreign: float
    stolen: float

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file, without digits that mean nothing."""
        return {key: _short(value) for key, value in asdict(self).items()}


def _short(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items()}
    return float(f"{value:.5g}") if isinstance(value, float) else value


class RealPool:
    """`modelyard up` with so many workers of one version.

    Attributes:
        pids: Its processes, whose CPU time counts; there may be other pools beside it.
    """

    pids: Sequence[int] = ()

    def __init__(self, target: Target, folder: Path, n_workers: int) -> None:
        self._target, self._folder, self._n_workers = target, folder, n_workers
        self._redis = redis.Redis.from_url(f"unix://{folder}/yard/redis.sock")

    def measure(self, turn: int, connections: int, measure_s: int) -> Point:
        """Load it, after a second of warming."""
        Generator(self._target, self._folder, connections, WARM_S).finish()
        before, times_before, own_before = self._counts(), machine.times(), time.process_time()
        seen = Generator(self._target, self._folder, connections, measure_s).finish()
        after, times_after = self._counts(), machine.times()
        used = {name: after[name] - before.get(name, 0.0) for name in after}
        jobs, batches, read, written = (used.pop(name) for name in ("jobs", "batches", "read", "written"))
        used["generator"] = seen.generator_cpu_s
        noise = machine.noise(
            times_before, times_after, sum(used.values()) + time.process_time() - own_before
        )
        return Point(
            turn=turn,
            workers=self._n_workers,
            connections=connections,
            per_s=seen.per_s,
            p50_ms=seen.latency_ms[50.0],
            p99_ms=seen.latency_ms[99.0],
            errors=seen.errors + seen.wrong,
            jobs_per_batch=jobs / batches,
            cpu_us={name: used_s / jobs * 1e6 for name, used_s in used.items()},
            to_redis_bytes=read / jobs,
            from_redis_bytes=written / jobs,
            steal=noise.steal,
            foreign=noise.foreign,
            stolen=(times_after.steal_s - times_before.steal_s) / (times_after.busy_s - times_before.busy_s),
        )

    def _counts(self) -> dict[str, float]:
        told = self._redis.info("stats")
        metrics = self._get("/metrics")
        return {
            **machine.cpu_by_label(self.pids, MODELYARD.labels),
            "jobs": _total(metrics, "modelyard_batch_jobs_sum"),
            "batches": _total(metrics, "modelyard_batch_jobs_count"),
            "read": float(told["total_net_input_bytes"]),
            "written": float(told["total_net_output_bytes"]),
        }

    def wait_until_all_are_ready(self) -> None:
        """Wait for the workers that are not ready with the first one.

        Raises:
            TimeoutError: They are not in time.
        """
        give_up_at = time.monotonic() + ALL_READY_LIMIT_S
        while self._get("/workers").count('"ready"') < self._n_workers:
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"{self._n_workers} workers are not ready within {ALL_READY_LIMIT_S:g} s")
            time.sleep(0.1)

    def _get(self, path: str) -> str:
        root = self._target.url.split("/predict")[0]
        with urllib.request.urlopen(root + path, timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def close(self) -> None:
        """Close what was opened."""
        self._redis.close()


def _total(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", metrics, re.MULTILINE))


@contextmanager
def running_pool(folder: Path, n_workers: int) -> Iterator[RealPool]:
    """A pool, all of its workers ready, for the duration of the context.

    Args:
        folder: An empty scratch folder; short, for sockets.
    """
    model = digit_bodies.make_model(envs.ENVIRONMENTS)
    place = Place(
        bin=envs.bin_folder(MODELYARD),
        port=processes.free_port(),
        spare_port=processes.free_port(),
        folder=folder,
        model=model.file,
        tracking_uri=model.tracking_uri,
    )

    def commands(place: Place) -> list[Command]:
        [up] = MODELYARD.commands(place)
        arguments = [*up.arguments, "--replicas", str(n_workers)]
        # One batch at a time: with two on the way their order is a matter of chance, which the model does not have.
        environment = {**up.environment, "MODELYARD_BATCHES_AHEAD": "0"}
        return [replace(up, arguments=arguments, environment=environment)]

    bodies = folder / "bodies.txt"
    digit_bodies.write_bodies(MODELYARD, model, bodies)
    others = set(machine.descendants(os.getpid()))
    target = Target(f"http://{LOOPBACK}:{place.port}{MODELYARD.path}", bodies, MODELYARD.class_pattern)
    with processes.running(replace(MODELYARD, commands=commands), place, target):
        pool = RealPool(target, folder, n_workers)
        try:
            pool.wait_until_all_are_ready()
            pool.pids = [pid for pid in machine.descendants(os.getpid()) if pid not in others]
            yield pool
        finally:
            pool.close()
