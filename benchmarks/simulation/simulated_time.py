"""A clock of simulated time, and what takes time on it: cores, single-threaded processes, network links."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from itertools import count

Action = Callable[[], None]


class Clock:
    """Simulated time. What is due at the same moment happens in the order in which it was planned."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._count = count()

    def after(self, delay_s: float, action: Action) -> None:
        """Plan an action."""
        heappush(self._due, (self.now_s + delay_s, next(self._count), action))

    def run(self, until_s: float) -> None:
        """Let everything happen that is due by then."""
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, action = heappop(self._due)
            action()
        self.now_s = until_s


class Host:
    """Cores that all running work shares equally, none of it with more than one core.

    That is the limit of a fair scheduler with short turns. `_share_s` is the CPU time that each piece of work
    would have had since the start of time, so that a piece ends when that has grown by its cost.
    """

    def __init__(self, clock: Clock, cores: float) -> None:
        self._clock = clock
        self._cores = cores
        self._work: list[tuple[float, int, Action]] = []
        self._count = count()
        self._share_s = 0.0
        self._seen_s = 0.0
        self._plan_number = 0

    def run(self, cost_s: float, done: Action) -> None:
        """Begin a piece of work that needs so much CPU time."""
        self._advance()
        heappush(self._work, (self._share_s + cost_s, next(self._count), done))
        self._plan()

    def _rate(self) -> float:
        return min(1.0, self._cores / len(self._work)) if self._work else 0.0

    def _advance(self) -> None:
        self._share_s += (self._clock.now_s - self._seen_s) * self._rate()
        self._seen_s = self._clock.now_s

    def _plan(self) -> None:
        self._plan_number += 1
        if self._work:
            left_s = max(self._work[0][0] - self._share_s, 0.0) / self._rate()
            self._clock.after(left_s, partial(self._end, self._plan_number))

    def _end(self, plan_number: int) -> None:
        if plan_number != self._plan_number:
            return  # work has begun or ended since, and what is next has been planned anew
        self._advance()
        _, _, done = heappop(self._work)
        self._plan()
        done()


class Process:
    """One thread that does one thing after the other, in the order of their arrival.

    Args:
        wake_s: Seconds from something's arrival to its begin where the process sleeps.
        vary: Gives what a cost really is this time, where that is not always the same.

    Attributes:
        used_s: CPU time so far.
    """

    def __init__(
        self, clock: Clock, host: Host, wake_s: float = 0.0, vary: Callable[[float], float] = float
    ) -> None:
        self.used_s = 0.0
        self._vary = vary
        self._clock = clock
        self._host = host
        self._wake_s = wake_s
        self._inbox: deque[tuple[float, Action]] = deque()
        self._is_awake = False

    def do(self, cost_s: float, done: Action) -> None:
        """Spend CPU time, then act."""
        self._inbox.append((cost_s, done))
        if not self._is_awake:
            self._is_awake = True
            self._clock.after(self._wake_s, self._next)

    def _next(self) -> None:
        if not self._inbox:
            self._is_awake = False
            return
        mean_cost_s, done = self._inbox.popleft()
        cost_s = self._vary(mean_cost_s)
        self.used_s += cost_s
        self._host.run(cost_s, partial(self._end, done))

    def _end(self, done: Action) -> None:
        done()
        self._next()


class Link:
    """One direction of a network link: bytes leave one after the other and arrive some time later.

    Attributes:
        used_s: Time so far in which bytes left.
    """

    def __init__(self, clock: Clock, bytes_per_s: float, latency_s: float) -> None:
        self.used_s = 0.0
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._latency_s = latency_s
        self._free_at_s = 0.0

    def send(self, n_bytes: float, arrived: Action) -> None:
        """Send so many bytes."""
        takes_s = n_bytes / self._bytes_per_s
        self._free_at_s = max(self._clock.now_s, self._free_at_s) + takes_s
        self.used_s += takes_s
        self._clock.after(self._free_at_s + self._latency_s - self._clock.now_s, arrived)
