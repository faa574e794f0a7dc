"""The asynchronous measurement: posts answered 202, timed until every outcome is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from app.redis import keys
from benchmarks.systems import LOOPBACK, Place, System
from benchmarks.wrk_load import MARKER, Generator, Load, LoadError, Target

POLL_S = 0.005
LIMIT_S = 240


def drain(system: System, place: Place, target: Target, connections: int, n_jobs: int) -> tuple[float, Load]:
    """Post `n_jobs` jobs and wait until as many have their outcome.

    Returns:
        Seconds from the first post to the last outcome, and what the load generator saw.

    Raises:
        LoadError: Outcomes are missing after the time limit.
    """
    with _missing(system, place, n_jobs) as count:
        for marker in place.folder.glob(f"{MARKER}*"):
            marker.unlink()
        give_up_at = time.monotonic() + LIMIT_S
        generator = Generator(target, place.folder, connections, LIMIT_S, stop_after=n_jobs)
        # No polling before all jobs are posted: it would take CPU time from the system.
        while (missing := _posting(place.folder) or count()) and time.monotonic() < give_up_at:
            time.sleep(POLL_S)
        done_at = time.time()
        generator.end_early()
        load = generator.finish()
    if missing:
        raise LoadError(f"{system.name} had not written the outcomes of {n_jobs} jobs after {LIMIT_S} s")
    return done_at - place.folder.joinpath(f"{MARKER}from").stat().st_mtime, load


def _posting(folder: Path) -> bool:
    """Whether a thread of the load generator is still posting."""
    return len(list(folder.glob(f"{MARKER}[0-9]"))) < 2


@contextmanager
def _missing(system: System, place: Place, n_jobs: int) -> Iterator[Callable[[], int]]:
    """A function that counts missing outcomes, of all accepted jobs or of `n_jobs`."""
    if system.name == "modelyard":
        with redis.Redis.from_url(f"unix://{place.folder}/yard/redis.sock") as client:
            yield lambda: sum(map(int, client.hvals(keys.BACKLOG)))
    else:  # every task's outcome is a key in a database of its own
        with redis.Redis(LOOPBACK, place.spare_port, db=1) as client:
            before = int(client.dbsize())
            yield lambda: max(0, n_jobs - (int(client.dbsize()) - before))
