"""The history of the pool: rates, means, what a restart keeps."""

from __future__ import annotations

import json

import msgspec

from controller.page.history import History
from controller.pool_watcher import PoolView
from tests.pool_samples import record

STEP_MS = 5000.0


def view(at_ms: float, done: int, failed: int = 0) -> PoolView:
    """A pool with one worker that has published at a time."""
    worker = record(1, heartbeat_at_ms=at_ms, jobs_done=done, jobs_failed=failed)
    return PoolView(records=(worker,), numbers={worker.queue: 1}, backlog_jobs={worker.queue: 4})


def points(history: History, window: str = "15m") -> list[tuple[int, dict[str, list[float | None]]]]:
    return [(at_s, values) for at_s, values in json.loads(history.encode())[window]]


def test_a_point_holds_the_mean_rate_of_its_step() -> None:
    history = History()
    for second in range(12):
        history.add(view(second * 1000.0, done=100 * second, failed=second), second * 1000.0)
    [first, point] = points(history)
    assert (first[0], point[0]) == (5, 10)
    assert point[1]["1"][:2] == [100, 1]
    assert point[1]["1"][5] == 4


def test_a_worker_that_has_published_once_has_no_rate() -> None:
    history = History()
    for at_ms in (0.0, STEP_MS):
        history.add(view(0.0, done=50), at_ms)
    assert points(history)[0][1]["1"][:2] == [None, None]


def test_a_rate_stands_until_the_next_heartbeat() -> None:
    history = History()
    for at_ms, heartbeat_ms in ((0.0, 0.0), (1000.0, 1000.0), (2000.0, 1000.0), (3000.0, 3000.0)):
        history.add(view(heartbeat_ms, done=int(heartbeat_ms / 100)), at_ms)
        assert history.newest().rates["1"] == ((10, 0) if at_ms else (None, None))


def test_the_point_that_is_open_holds_the_mean_so_far() -> None:
    history = History()
    for second in range(8):
        history.add(view(second * 1000.0, done=second * second), second * 1000.0)
    newest = history.newest()
    assert (newest.closed["15m"].at_s, newest.open["15m"].at_s, newest.open["24h"].at_s) == (5, 7, 7)
    assert newest.open["15m"].values["1"][0] == 11  # of 9, 11 and 13
    assert "24h" not in newest.closed


def test_a_restart_keeps_the_points_that_are_not_too_old() -> None:
    history, later = History(), History()
    for second in range(0, 30, 5):
        history.add(view(second * 1000.0, done=second), second * 1000.0)
    kept = points(history)
    later.restore(history.encode(), now_ms=26_000.0)
    assert points(later) == kept
    much_later = History()
    much_later.restore(history.encode(), now_ms=26_000.0 + 901_000)
    assert points(much_later) == []
    assert msgspec.json.decode(much_later.encode())["24h"] == []


def test_the_windows_are_bounded() -> None:
    history = History()
    for step in range(400):
        history.add(view(step * STEP_MS, done=step), step * STEP_MS)
    assert len(points(history)) == 180
