"""Whether a worker still asks for work. A consumer that lost its way looks alive: its process runs, its record beats.

Celery's consumer has lost its way after a reconnect in several releases. So liveness is judged by progress: an
idle consumer asks Redis for a message every second. One that does not, while Redis answers the heartbeat, never
will; its process ends, and its parent forks another.
"""

from __future__ import annotations

import time

STALLED_S = 20.0


class Progress:
    """When the worker last did, or could not do, what it is for.

    Args:
        heartbeat_s: Seconds between two looks.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._pause_s = 2 * heartbeat_s + STALLED_S / 2
        self._at_s = self._looked_at_s = time.monotonic()

    def note(self) -> None:
        """It asked for a message, has a batch in hand, or cannot ask as Redis is away."""
        self._at_s = time.monotonic()

    def has_stalled(self) -> bool:
        """Whether nothing of that was so for too long; to be asked each heartbeat."""
        now_s = time.monotonic()
        was_paused = now_s - self._looked_at_s > self._pause_s  # the whole process stood still
        self._looked_at_s = now_s
        if was_paused:
            self._at_s = now_s
        return now_s - self._at_s > STALLED_S
