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

    def adjust(self, redis_time: tuple[int, int]) -> None:
        """Take over the answer (seconds, microseconds) of Redis's TIME, just received."""
        seconds, microseconds = redis_time
        self._offset_ms = seconds * 1000 + microseconds / 1000 - time.monotonic() * 1000
