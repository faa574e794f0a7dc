"""The pool's last 15 minutes and 24 hours for the charts of the page. Pure functions without I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import msgspec

from app.worker_record import WorkerRecord, by_queue
from controller.pool_watcher import PoolView

SERIES = ("jobs_per_s", "failed_per_s", "p50_ms", "p99_ms", "batch_samples", "backlog_jobs")
Reading = Mapping[str, Sequence[float | None]]
STEPS_S = {"15m": 5, "24h": 300}
POINTS = {"15m": 180, "24h": 288}
MOST_VERSIONS = 64  # maximum number of versions per reading; the busiest are kept


class Point(msgspec.Struct, array_like=True):
    """One point in time: the values of `SERIES` by worker number."""

    at_s: int
    values: dict[str, list[float | None]]


class Window:
    """The last points at equal intervals; each is the mean of the readings in its interval."""

    def __init__(self, step_s: int, n_points: int) -> None:
        self._step_s = step_s
        self._points: deque[Point] = deque(maxlen=n_points)
        self._sums: dict[str, list[tuple[float, int]]] = {}
        self._due_s, self._now_s = 0, 0.0

    def add(self, now_s: float, reading: Reading) -> None:
        """Add a reading."""
        if self._due_s and now_s >= self._due_s:
            self._close()
        if now_s >= self._due_s:
            self._due_s = int(now_s // self._step_s + 1) * self._step_s
        self._now_s = now_s
        for number, values in reading.items():
            sums = self._sums.get(number) or [(0.0, 0)] * len(SERIES)
            self._sums[number] = [
                (total, n) if value is None else (total + value, n + 1)
                for (total, n), value in zip(sums, values, strict=True)
            ]

    def points(self) -> list[Point]:
        """All points, oldest first."""
        return list(self._points)

    def last_point(self) -> Point | None:
        """The last interval that has ended."""
        return self._points[-1] if self._points else None

    def open_point(self) -> Point:
        """The interval that has not ended, so far."""
        return self._point(int(self._now_s))

    def restore(self, points: Sequence[Point], now_s: float) -> None:
        """Load stored points, except outdated ones."""
        oldest_s = now_s - self._step_s * (self._points.maxlen or 0)
        self._points.extend(each for each in points if oldest_s < each.at_s <= now_s)

    def _close(self) -> None:
        self._points.append(self._point(self._due_s))
        self._sums = {}

    def _point(self, at_s: int) -> Point:
        means = {
            number: [round(total / n, 3) if n else None for total, n in sums]
            for number, sums in self._sums.items()
        }
        return Point(at_s, means)


class Newest(msgspec.Struct):
    """What the newest reading has added, for pages that have the points before.

    Attributes:
        rates: Done and failed jobs per second by worker number.
        closed: The last point of each window that has any.
        open: The point of each window that has not ended.
    """

    rates: dict[str, tuple[float | None, float | None]]
    closed: dict[str, Point]
    open: dict[str, Point]


class History:
    """Both windows, filled from pool views."""

    def __init__(self) -> None:
        self._windows = {name: Window(STEPS_S[name], POINTS[name]) for name in STEPS_S}
        self._before: dict[str, tuple[float, int, int]] = {}
        self._worker_rates: dict[str, tuple[float, float]] = {}
        self._rates: dict[str, tuple[float | None, float | None]] = {}

    def add(self, view: PoolView, now_ms: float) -> None:
        """Add a pool view. Rates are differences to the previous view."""
        reading = self._read(view)
        self._rates = {number: (values[0], values[1]) for number, values in reading.items()}
        busiest = sorted(reading, key=lambda number: -(reading[number][0] or 0))[:MOST_VERSIONS]
        reading = {number: reading[number] for number in busiest}
        for window in self._windows.values():
            window.add(now_ms / 1000, reading)

    def encode(self) -> bytes:
        """The points of both windows as JSON."""
        return msgspec.json.encode({name: window.points() for name, window in self._windows.items()})

    def newest(self) -> Newest:
        """What pages need besides `encode` of their start."""
        closed = {name: last for name, window in self._windows.items() if (last := window.last_point())}
        return Newest(
            self._rates, closed, {name: window.open_point() for name, window in self._windows.items()}
        )

    def restore(self, data: bytes, now_ms: float) -> None:
        """Load the output of `encode`.

        Raises:
            msgspec.DecodeError: The data has another format.
        """
        kept = msgspec.json.decode(data, type=dict[str, list[Point]])
        for name, window in self._windows.items():
            window.restore(kept.get(name, []), now_ms / 1000)

    def _read(self, view: PoolView) -> dict[str, list[float | None]]:
        groups = by_queue(view.records)
        rates = self._read_rates(view.records)
        reading: dict[str, list[float | None]] = {}
        for queue in {*groups, *view.backlog_jobs}:
            records = groups.get(queue, [])
            newest = records[0] if records else None
            own = [rates[each.worker_id] for each in records if each.worker_id in rates]
            reading[str(view.numbers.get(queue, 0))] = [
                sum(done for done, _ in own) if own else None,
                sum(failed for _, failed in own) if own else None,
                newest.inference_ms.p50 if newest else None,
                newest.inference_ms.p99 if newest else None,
                newest.batch_samples_mean if newest else None,
                float(view.backlog_jobs.get(queue, 0)),
            ]
        return reading

    def _read_rates(self, records: Sequence[WorkerRecord]) -> Mapping[str, tuple[float, float]]:
        """Done and failed jobs per second by worker id, between the last two heartbeats of workers with two."""
        now = {each.worker_id: (each.heartbeat_at_ms, each.jobs_done, each.jobs_failed) for each in records}
        rates = {key: rate for key, rate in self._worker_rates.items() if key in now}
        for worker_id, (at_ms, done, failed) in now.items():
            before = self._before.get(worker_id)
            if before is not None and before[0] < at_ms:
                seconds = (at_ms - before[0]) / 1000
                rates[worker_id] = ((done - before[1]) / seconds, (failed - before[2]) / seconds)
        self._before, self._worker_rates = now, rates
        return rates
