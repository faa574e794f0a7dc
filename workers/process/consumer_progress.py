"""Detects a stalled consumer. Such a worker looks alive: its process runs and its heartbeats continue.

Celery's consumer has stalled after a reconnect in several releases. So liveness is judged by progress: an idle
consumer asks Redis for a message every second. If it does not, although Redis answers the heartbeat, it has stalled
for good; its process ends, and the supervisor forks another.
"""

from __future__ import annotations

import time

STALLED_S = 20.0


class Progress:
    """The time of the worker's last progress, or of its last reason not to make progress.

    Args:
        heartbeat_s: Seconds between two checks.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._pause_s = 2 * heartbeat_s + STALLED_S / 2
        self._at_s = self._looked_at_s = time.monotonic()

    def note(self) -> None:
        """Record progress: it asked for a message, runs a batch, or cannot ask because Redis is unreachable."""
        self._at_s = time.monotonic()

    def has_stalled(self) -> bool:
        """Whether there was no progress for too long; to be called each heartbeat."""
        now_s = time.monotonic()
        was_paused = now_s - self._looked_at_s > self._pause_s  # the whole process was suspended
        self._looked_at_s = now_s
        if was_paused:
            self._at_s = now_s
        return now_s - self._at_s > STALLED_S
