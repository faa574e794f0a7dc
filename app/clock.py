"""Redis's clock, kept locally: hosts may disagree about the time, the pool may not."""

from __future__ import annotations

import math
import time


class PoolClock:
    """Tells Redis's time from the local monotonic clock and the offset between them, as well as it was seen.

    Until the first `adjust` it tells local time.
    """

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._error_ms = math.inf

    def now_ms(self) -> float:
        """Milliseconds since the epoch, as Redis would tell them."""
        return time.monotonic() * 1000 + self._offset_ms

    def ms_at(self, monotonic_s: float) -> float:
        """The same for a moment of `time.monotonic()`."""
        return monotonic_s * 1000 + self._offset_ms

    def adjust(self, redis_time: tuple[int, int], asked_at_s: float) -> None:
        """Take over the answer (seconds, microseconds) of Redis's TIME, as read halfway through the round trip.

        After a slow round trip that may be wrong by half of it, either way. So what is known already stays, unless
        the answer is more exact or contradicts it: one of the clocks has drifted, or was set.

        Args:
            redis_time: The answer.
            asked_at_s: `time.monotonic()` when it was asked.
        """
        seconds, microseconds = redis_time
        answered_at_s = time.monotonic()
        error_ms = (answered_at_s - asked_at_s) * 500
        offset_ms = to_ms(seconds, microseconds) - (asked_at_s + answered_at_s) * 500
        if error_ms < self._error_ms or abs(offset_ms - self._offset_ms) > error_ms:
            self._offset_ms, self._error_ms = offset_ms, error_ms


def to_ms(seconds: int, microseconds: int) -> float:
    """Milliseconds since the epoch of an answer of Redis's TIME."""
    return seconds * 1000 + microseconds / 1000
