"""Bytes that could not be read: counted each time, logged once in a while, so that garbage does not flood a log."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Literal, get_args

logger = logging.getLogger(__name__)

What = Literal["batch", "message", "notice", "outcome", "pool_entry", "remote_command", "worker_record"]
WHATS: tuple[What, ...] = get_args(What)
QUIET_S = 600.0
REMEMBERED = 1024


class Unreadable:
    """What one process came across.

    Attributes:
        counts: Times, by what it was.
    """

    def __init__(self) -> None:
        self.counts: Counter[What] = Counter()
        self._logged_at_s: dict[tuple[What, str], float] = {}

    @property
    def total(self) -> int:
        """All together."""
        return self.counts.total()

    def note(self, what: What, key: str, reason: object) -> None:
        """Count one, and log it unless the same was logged in the last ten minutes.

        Args:
            key: Which one, where that says something; its text may be anybody's.
            reason: What is wrong with it, and what is done about it.
        """
        self.counts[what] += 1
        now_s = time.monotonic()
        seen_at_s = self._logged_at_s.get((what, key))
        if seen_at_s is not None and now_s - seen_at_s < QUIET_S:
            return
        while len(self._logged_at_s) >= REMEMBERED:
            del self._logged_at_s[next(iter(self._logged_at_s))]
        self._logged_at_s.pop((what, key), None)
        self._logged_at_s[what, key] = now_s
        name = what.replace("_", " ")
        logger.error("unreadable %s %.80r, %d so far: %.300s", name, key, self.counts[what], reason)
