"""Redis's clock, kept locally: hosts may disagree about the time, the pool may not."""

from __future__ import annotations

import time


class PoolClock:
    """Tells Redis's time from the local monotonic clock and the offset last seen.

    Until the first `adjust` it tells local time.
    """

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def now_ms(self) -> float:
        """Milliseconds since the epoch, as Redis would tell them."""
        return time.monotonic() * 1000 + self._offset_ms

    def adjust(self, redis_time: tuple[int, int], asked_at_s: float) -> None:
        """Take over the answer (seconds, microseconds) of Redis's TIME, as read halfway through the round trip.

        Args:
            redis_time: The answer.
            asked_at_s: `time.monotonic()` when it was asked.
        """
        seconds, microseconds = redis_time
        halfway_s = (asked_at_s + time.monotonic()) / 2
        self._offset_ms = to_ms(seconds, microseconds) - halfway_s * 1000


def to_ms(seconds: int, microseconds: int) -> float:
    """Milliseconds since the epoch of an answer of Redis's TIME."""
    return seconds * 1000 + microseconds / 1000
