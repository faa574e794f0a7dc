"""Whether a worker still asks for work. A consumer that lost its way looks alive: its process runs, its record beats.

Celery's consumer has lost its way after a reconnect in several releases. So liveness is judged by progress: an
idle consumer asks Redis for a message every second. One that does not, while Redis answers the heartbeat, never
will; its worker ends and is started again by whatever keeps it up.
"""

from __future__ import annotations

import time

STALLED_S = 20.0


class Progress:
    """When the worker last did, or could not do, what it is for."""

    def __init__(self) -> None:
        self._at_s = time.monotonic()

    def note(self) -> None:
        """It asked for a message, has a batch in hand, or cannot ask as Redis is away."""
        self._at_s = time.monotonic()

    @property
    def is_stalled(self) -> bool:
        """Whether nothing of that was so for too long."""
        return time.monotonic() - self._at_s > STALLED_S
