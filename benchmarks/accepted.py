"""The asynchronous way: posts answered with 202, timed until the outcome of every job is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from app import ids, keys
from benchmarks.load import Generator, Load, LoadError, Target
from benchmarks.systems import LOOPBACK, Place, System

POLL_S = 0.01
LIMIT_S = 240


def drain(system: System, place: Place, target: Target, connections: int, n_jobs: int) -> tuple[float, Load]:
    """Post `n_jobs` jobs and wait until as many have their outcome.

    Returns:
        Seconds from the start of the load to the last outcome, and what the load generator saw.

    Raises:
        LoadError: Outcomes are missing after the time limit.
    """
    with _outcomes(system, place) as count:
        for marker in place.folder.glob("posted-*"):
            marker.unlink()
        started_at = time.monotonic()
        generator = Generator(target, place.folder, connections, LIMIT_S, stop_after=n_jobs)
        written = 0
        while written < n_jobs and time.monotonic() < started_at + LIMIT_S:
            written = count()
        took_s = time.monotonic() - started_at
        _wait_for_the_posts(place.folder, started_at + LIMIT_S)
        generator.end_early()
        load = generator.finish()
    if written < n_jobs:
        raise LoadError(f"{system.name} wrote {written} outcomes of {n_jobs} jobs within {LIMIT_S} s")
    return took_s, load


def _wait_for_the_posts(folder: Path, give_up_at: float) -> None:
    # The last outcomes may be written before the last answers are read.
    while len(list(folder.glob("posted-*"))) < 2 and time.monotonic() < give_up_at:
        time.sleep(POLL_S)


@contextmanager
def _outcomes(system: System, place: Place) -> Iterator[Callable[[], int]]:
    """Gives a function that waits a moment and tells how many outcomes have been written since."""
    opened = _modelyard_outcomes(place) if system.name == "modelyard" else _celery_outcomes(place)
    with opened as count:
        yield count


@contextmanager
def _modelyard_outcomes(place: Place) -> Iterator[Callable[[], int]]:
    """Every batch's outcome is announced in the script that writes it."""
    total = 0
    with redis.Redis.from_url(f"unix://{place.folder}/yard/redis.sock") as client, client.pubsub() as notices:
        notices.psubscribe(keys.reply_channel("*"))
        notices.get_message(timeout=5)  # that of the subscription

        def count() -> int:
            nonlocal total
            notice = notices.get_message(ignore_subscribe_messages=True, timeout=POLL_S)
            if notice:
                total += ids.n_jobs(notice["data"][: ids.BATCH_ID_LENGTH].decode())
            return total

        yield count


@contextmanager
def _celery_outcomes(place: Place) -> Iterator[Callable[[], int]]:
    """Every task's outcome is a key in a database of its own."""
    with redis.Redis(LOOPBACK, place.spare_port, db=1) as client:
        before = int(client.dbsize())

        def count() -> int:
            time.sleep(POLL_S)
            return int(client.dbsize()) - before

        yield count
