"""A local estimate of Redis's clock: hosts' clocks may differ, but the pool needs one common time."""

from __future__ import annotations

import math
import time


class PoolClock:
    """Estimates Redis's time from the local monotonic clock and the best known offset between them.

    Before the first `adjust` it returns local time.
    """

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._error_ms = math.inf

    def now_ms(self) -> float:
        """Milliseconds since the epoch by Redis's clock."""
        return time.monotonic() * 1000 + self._offset_ms

    def ms_at(self, monotonic_s: float) -> float:
        """The same for a value of `time.monotonic()`."""
        return monotonic_s * 1000 + self._offset_ms

    def adjust(self, redis_time: tuple[int, int], asked_at_s: float) -> None:
        """Process the reply (seconds, microseconds) of Redis's TIME, assumed to be read halfway through the round trip.

        The error is up to half of the round trip in either direction. So the known offset is kept, unless the reply is
        more exact or contradicts it, because one of the clocks has drifted or was set.

        Args:
            redis_time: The reply.
            asked_at_s: `time.monotonic()` when the command was sent.
        """
        seconds, microseconds = redis_time
        answered_at_s = time.monotonic()
        error_ms = (answered_at_s - asked_at_s) * 500
        offset_ms = to_ms(seconds, microseconds) - (asked_at_s + answered_at_s) * 500
        if error_ms < self._error_ms or abs(offset_ms - self._offset_ms) > error_ms:
            self._offset_ms, self._error_ms = offset_ms, error_ms


def to_ms(seconds: int, microseconds: int) -> float:
    """A reply of Redis's TIME in milliseconds since the epoch."""
    return seconds * 1000 + microseconds / 1000
