"""Unreadable bytes: counted each time but logged rarely, so that invalid data does not flood the log."""

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
    """The unreadable data found by one process.

    Attributes:
        counts: Number of occurrences by kind.
    """

    def __init__(self) -> None:
        self.counts: Counter[What] = Counter()
        self._logged_at_s: dict[tuple[What, str], float] = {}

    @property
    def total(self) -> int:
        """Sum of all counts."""
        return self.counts.total()

    def note(self, what: What, key: str, reason: object) -> None:
        """Count one, and log it unless the same was logged in the last ten minutes.

        Args:
            key: The affected object, if it helps; its text is untrusted.
            reason: The fault and the reaction to it.
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
        extra = {"batch_id": key} if what in ("batch", "outcome") else None
        logger.error(
            "unreadable %s %.80r, %d so far: %.300s", name, key, self.counts[what], reason, extra=extra
        )
