"""A full queue: which callers it still takes, and when the others are to come back.

Nothing here runs while a queue has room. Each controller decides for its own callers; all jobs of other controllers
count as those of one more caller.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping

# Part of what the workers get done that is promised to those who return. New callers cannot be told from them, and
# take the rest: with 0.4, at three times the capacity, one in six of those who return is refused again; with 1, every
# third. A smaller part makes them wait longer than the workers need.
RETURNS_SHARE = 0.4
LONGEST_RETURN_S = 300.0
FORGET_S = 10.0  # without a refusal: there has been room, and many who were told to return never will
JITTER = 0.25


class FullQueue:
    """The callers of one queue, as far as it is full.

    Args:
        open_jobs: Open jobs of this controller in the queue, by the name of their API key; as they are now.
        now_s: A monotonic clock.
    """

    def __init__(self, open_jobs: Mapping[str, int], now_s: Callable[[], float] = time.monotonic) -> None:
        self._open_jobs = open_jobs
        self._now_s = now_s
        self._next_return_s: dict[str, float] = {}
        self._refused_at_s = 0.0

    def is_below_share(self, caller: str, most_jobs: float, n_others: int) -> bool:
        """Whether a caller has fewer open jobs than its share of the queue (max-min fairness).

        Callers without an API key are one caller, who has nobody to share with.

        Args:
            most_jobs: What the queue holds when it is full.
            n_others: Callers besides those of this controller.
        """
        if not caller:
            return False
        n_callers = self._n_callers(caller) + n_others
        return n_callers > 1 and self._open_jobs.get(caller, 0) + 1 <= most_jobs / n_callers

    def return_after_s(self, caller: str, room_s: float, job_s: float) -> float:
        """Seconds after which a refused caller is to come back: a place behind the refusals of this caller before.

        Args:
            room_s: Until the jobs that are there now leave room for one more.
            job_s: Between two jobs that the workers get done.
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
