from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cli.local_pool.scaling import (
    Need,
    Sample,
    jobs_per_worker_s,
    needed_workers,
    wanted_workers,
    within_memory,
)

CALM_S = 60.0


def samples(*rows: tuple[int, int, int]) -> list[Sample]:
    """Samples of consecutive seconds: open jobs, jobs done and busy workers."""
    return [Sample(float(second), *row) for second, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("rows", "rate"),
    [
        ([(0, 0, 0)], None),
        ([(5, 10, 1), (5, 10, 1)], None),  # busy, but nothing ended yet
        ([(0, 0, 0), (0, 10, 0)], None),  # seen idle only
        ([(9, 0, 1), (9, 20, 1), (9, 40, 1)], 20.0),
        ([(9, 0, 2), (9, 40, 2)], 20.0),  # by each of two
        ([(9, 0, 1), (9, 10, 0)], 20.0),  # in half of the time
    ],
)
def test_rate_is_of_one_busy_worker(rows: list[tuple[int, int, int]], rate: float | None) -> None:
    assert jobs_per_worker_s(samples(*rows)) == rate


@pytest.mark.parametrize(
    ("jobs", "busy", "rate", "present", "needed"),
    [
        (0, 0, None, 2, 0),
        (9, 1, None, 2, 2),  # nothing is known: they stay
        (1, 0, 10.0, 1, 1),  # never below one while jobs wait
        (20, 1, 10.0, 1, 1),  # 2 s are not too long
        (21, 1, 10.0, 1, 2),
        (200, 1, 10.0, 1, 10),
        (0, 2, 10.0, 3, 3),  # busy workers stay
        (0, 3, 10.0, 3, 3),  # but start no others
        (0, 1, 10.0, 3, 2),
    ],
)
def test_workers_are_needed_by_the_expected_wait(
    jobs: int, busy: int, rate: float | None, present: int, needed: int
) -> None:
    assert needed_workers(samples((jobs, 0, busy)), rate, present, longest_wait_s=2.0) == needed


@pytest.mark.parametrize(
    ("needs", "present", "wanted"),
    [
        ([(0, 3)], 1, 3),  # up at once
        ([(0, 9)], 1, 4),  # but not above the bounds
        ([(0, 1)], 3, 3),  # down only after a while
        ([(0, 1), (30, 1), (59, 1)], 3, 3),
        ([(0, 1), (30, 1), (60, 1)], 4, 2),  # and half of them at a time
        ([(0, 3), (30, 1), (60, 1)], 4, 3),  # as far as they were not needed
        ([(0, 1), (30, 3), (60, 1)], 3, 3),
        ([(0, 0), (60, 0)], 1, 1),  # never below the bounds
        ([(0, 2), (60, 2)], 2, 2),
        ([(0, 0)], 0, 1),
    ],
)
def test_workers_start_at_once_and_stop_after_a_calm_time(
    needs: Sequence[tuple[float, int]], present: int, wanted: int
) -> None:
    assert wanted_workers([Need(*each) for each in needs], present, (1, 4), CALM_S) == wanted


@pytest.mark.parametrize(
    ("free_bytes", "n_starting", "workers"),
    [
        (1499, 0, 2),
        (1500, 0, 3),  # 1.5 times the size of a present one
        (4000, 0, 4),
        (4000, 1, 3),  # the one that starts will take its part
        (4000, 2, 2),
        (-500, 0, 2),  # none is stopped
        (99_000, 0, 8),
        (math.inf, 2, 8),
    ],
)
def test_only_as_many_workers_start_as_memory_has_room_for(
    free_bytes: float, n_starting: int, workers: int
) -> None:
    assert within_memory(8, 2, n_starting, free_bytes, size_bytes=1000) == workers


def test_a_size_that_is_unknown_holds_no_worker_back() -> None:
    assert within_memory(8, 2, 0, free_bytes=1, size_bytes=0) == 8
