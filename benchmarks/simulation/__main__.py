"""Calibrate the simulated pool on this machine, validate it here, and simulate larger pools: `make simulate`."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from benchmarks import processes, wrk_load
from benchmarks.machine import STEAL_LIMIT
from benchmarks.processes import StartError
from benchmarks.simulation import calibrate, check, costs, page, study
from benchmarks.simulation.real import Point, RealPool, running_pool
from benchmarks.wrk_load import LoadError

BENCHMARKS = Path(__file__).resolve().parent.parent
COSTS = BENCHMARKS / "results" / "costs.json"
CHECK = BENCHMARKS / "results" / "check.json"
PAGE = BENCHMARKS / "scaling.md"
FIGURE = BENCHMARKS / "scaling.png"
PLACES = [
    (n_workers, connections)
    for n_workers in check.WORKERS
    for connections in (*calibrate.CONNECTIONS, *check.CONNECTIONS)
]
STEPS = ("measure", "study")
N_ROUNDS = 7
MEASURE_S = 3
TRIES = 2  # of a measurement with steal time


def main() -> int:
    """Run the steps that the command line names; return 1 if a prediction is too far from its measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"steps to run, separated by commas: {', '.join(STEPS)}")
    chosen = [step for step in parser.parse_args().only.split(",") if step] or list(STEPS)
    if unknown := [step for step in chosen if step not in STEPS]:
        parser.error(f"unknown step {', '.join(unknown)}; known: {', '.join(STEPS)}")
    try:
        if "measure" in chosen or not (COSTS.exists() and CHECK.exists()):
            measure()
        return write("study" in chosen)
    except (LoadError, StartError, TimeoutError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 1
    except msgspec.ValidationError as error:
        print(
            f"simulate: what was measured is not of this version ({error}); run make simulate",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def measure() -> None:
    """Measure real pools; write the points for calibration and for validation.

    All places again and again, as the machine's speed changes within minutes, and each time in another order: Redis
    rewrites its file after so many bytes, which is not to hit the same place each time.
    """
    wrk_load.version()
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that `finally` stops all processes
    try:
        with ExitStack() as stack:
            pools = {n_workers: stack.enter_context(one_pool(n_workers)) for n_workers in check.WORKERS}
            points = [
                measure_quietly(pools[n_workers], turn, connections)
                for turn in range(N_ROUNDS)
                for n_workers, connections in random.Random(turn).sample(PLACES, len(PLACES))
            ]
    finally:
        processes.stop_all()
    own = [point for point in points if point.connections in calibrate.CONNECTIONS]
    calibrate.calibrate(own, COSTS)
    checked = [point.as_dict() for point in points if point.connections in check.CONNECTIONS]
    CHECK.write_text(json.dumps(checked, indent=1) + "\n")


@contextmanager
def one_pool(n_workers: int) -> Iterator[RealPool]:
    """A pool in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="sim-") as folder, running_pool(Path(folder), n_workers) as pool:
        yield pool


def measure_quietly(pool: RealPool, turn: int, connections: int) -> Point:
    """Measure, at most `TRIES` times, until steal time is negligible."""
    points: list[Point] = []
    while len(points) < TRIES and (not points or points[-1].steal > STEAL_LIMIT):
        points.append(pool.measure(turn, connections, MEASURE_S))
        print(points[-1].as_dict(), flush=True)
    return min(points, key=lambda point: point.steal)


def write(with_study: bool) -> int:
    """Simulate from the stored measurements, and write the page."""
    known, about = costs.read(COSTS)
    calibrating = msgspec.convert(about["points"], list[Point])
    points = msgspec.json.decode(CHECK.read_bytes(), type=list[Point])
    checked = check.compare(calibrating, points, known.wake_us, os.cpu_count() or 1)
    parts = {
        "costs": page.costs_table(known, about, calibrating),
        "check": check.table(checked, points),
        "limits": page.limits_table(known),
    }
    print(f"{parts['costs']}\n\n{parts['check']}", flush=True)
    if with_study:
        replicas, bursts = list(study.replicas(known)), list(study.bursts(known))
        parts |= {
            "replicas": page.replicas_table(replicas),
            "slow": page.places_table(
                list(study.slow_models(known)), "n_controllers", "n_workers", "ahead", "max_jobs"
            ),
            "versions": page.places_table(list(study.versions(known)), "n_versions"),
            "bursts": page.bursts_table(bursts),
        }
        page.draw(replicas, bursts, FIGURE)
    page.fill(PAGE, parts)
    print(f"wrote {PAGE.relative_to(BENCHMARKS.parent)}")
    if check.within_limit(checked):
        return 0
    print(f"simulate: a prediction is off by more than {check.LIMIT:.0%}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
