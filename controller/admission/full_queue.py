"""A full queue: which callers it still admits, and when the others should retry.

This code runs only while a queue is full. Each controller decides for its own callers; all jobs of other controllers
count as one additional caller.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

# Fraction of the workers' throughput that is promised to returning callers. New callers cannot be distinguished from
# them and take the rest. At three times the capacity, 0.4 means that one in six returning callers is refused again;
# 1 means every third. A smaller fraction makes callers wait longer than the workers need.
RETURNS_SHARE = 0.4
LONGEST_RETURN_S = 300.0
FORGET_S = 10.0  # time without a refusal after which promises are dropped: many refused callers never return
JITTER = 0.25


class FullQueue:
    """Admission to one queue while it is full.

    Args:
        open_jobs: Current open jobs of this controller in the queue, by the name of their API key.
        now_s: A monotonic clock.
    """

    def __init__(self, open_jobs: Mapping[str, int], now_s: Callable[[], float] = time.monotonic) -> None:
        self._open_jobs = open_jobs
        self._now_s = now_s
        self._next_return_s: dict[str, float] = {}
        self._refused_at_s = 0.0

    def is_below_share(self, caller: str, most_jobs: float, n_others: int) -> bool:
        """Whether a caller has fewer open jobs than its share of the queue (max-min fairness).

        All callers without an API key count as one caller, which has no share of its own.

        Args:
            most_jobs: Number of jobs in the queue when it is full.
            n_others: Number of callers besides those of this controller.
        """
        if not caller:
            return False
        n_callers = self._n_callers(caller) + n_others
        return n_callers > 1 and self._open_jobs.get(caller, 0) + 1 <= most_jobs / n_callers

    def return_after_s(self, caller: str, room_s: float, job_s: float) -> float:
        """Seconds after which a refused caller should retry: one place behind its earlier refusals.

        Args:
            room_s: Seconds until the current jobs leave room for one more.
            job_s: Seconds between two finished jobs of the workers.
        """
        now_s = self._now_s()
        spacing_s = job_s * (self._n_callers(caller) if caller else 1) / RETURNS_SHARE
        if now_s - self._refused_at_s > FORGET_S:
            self._next_return_s.clear()
        self._refused_at_s = now_s
        longest_s = max(LONGEST_RETURN_S, room_s)
        behind_s = max(self._next_return_s.get(caller, 0.0) - now_s - room_s, 0.0)
        self._next_return_s[caller] = now_s + min(room_s + behind_s + spacing_s, longest_s)
        return max(min(room_s + behind_s * random.uniform(1 - JITTER, 1 + JITTER), longest_s), 1.0)

    def _n_callers(self, caller: str) -> int:
        return len(self._open_jobs) + (caller not in self._open_jobs)
