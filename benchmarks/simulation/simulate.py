"""One simulated run: a pool under a load, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks.simulation.costs import Costs
from benchmarks.simulation.pool_model import SEED, Job, Plan, Pool
from benchmarks.simulation.simulated_time import Clock, Host, Process

CLIENT_THREADS = 2  # of wrk


@dataclass(frozen=True)
class Seen:
    """What a run gave.

    Attributes:
        per_s: Answers per second.
        latency_s: Of each answer, by the time it came.
        batch_jobs: Mean jobs per batch.
        utilisation: By kind of process, share of the time that the busiest of its kind was busy.
    """

    per_s: float
    latency_s: list[tuple[float, float]]
    batch_jobs: float
    utilisation: dict[str, float]

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies."""
        ordered = sorted(latency for _, latency in self.latency_s)
        return (
            1000 * ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]
            if ordered
            else float("nan")
        )

    @property
    def busiest(self) -> tuple[str, float]:
        """The kind of process that bounds the throughput, and how busy it is."""
        name = max(self.utilisation, key=lambda each: self.utilisation[each])
        return name, self.utilisation[name]


class Run:
    """A pool and its callers.

    Attributes:
        answers: When each answer came, and how long it took.
    """

    def __init__(self, costs: Costs, plan: Plan) -> None:
        self.clock = Clock()
        self.answers: list[tuple[float, float]] = []
        self.n_asked = 0
        self._random = random.Random(SEED)
        self._plan = plan
        self.pool = Pool(self.clock, costs, plan)

    def close_loop(self, connections: int) -> None:
        """Connections that each post as soon as they have their answer, spread over the controllers.

        On a shared host the load generator needs cores, too.
        """
        shared, cost_s = bool(self._plan.cores), self.pool.costs.client_us * 1e-6
        free = Host(self.clock, float("inf"))
        threads = [
            self.pool.process() if shared else Process(self.clock, free) for _ in range(CLIENT_THREADS)
        ]
        for number in range(connections):
            # A moment apart, as connections are made; all at once they would march in step.
            post = partial(
                self._again, threads[number % CLIENT_THREADS], cost_s if shared else 0.0, number, None
            )
            self.clock.after(self._random.random() * 1e-3, post)

    def _again(self, thread: Process, cost_s: float, number: int, asked_at_s: float | None) -> None:
        def post() -> None:
            if asked_at_s is not None:
                self.answers.append((self.clock.now_s, self.clock.now_s - asked_at_s))
            self._post(number, partial(self._again, thread, cost_s, number, self.clock.now_s))

        thread.do(cost_s, post)

    def open_loop(self, rate_per_s: Callable[[float], float]) -> None:
        """Requests that come whether or not earlier ones were answered, at random.

        Args:
            rate_per_s: Requests per second by the time in s.
        """

        def arrive() -> None:
            asked_at_s = self.clock.now_s

            def answered() -> None:
                self.answers.append((self.clock.now_s, self.clock.now_s - asked_at_s))

            self._post(self.n_asked, answered)
            self.clock.after(self._random.expovariate(rate_per_s(asked_at_s)), arrive)

        self.clock.after(0.0, arrive)

    def _post(self, number: int, done: Callable[[], None]) -> None:
        self.n_asked += 1
        version = self._random.randrange(self._plan.n_versions) if self._plan.n_versions > 1 else 0
        self.pool.controllers[number % self._plan.n_controllers].receive(Job(version, done))

    def watch(self, warm_s: float, measure_s: float) -> Seen:
        """Let time pass, and measure after the warming."""
        self.clock.run(warm_s)
        before, self.answers[:] = self._used_s(), []
        self.pool.redis.batch_sizes.clear()
        self.clock.run(warm_s + measure_s)
        sizes = self.pool.redis.batch_sizes
        utilisation = {
            kind: max(end - start for start, end in zip(before[kind], used, strict=True)) / measure_s
            for kind, used in self._used_s().items()
        }
        mean = sum(sizes) / len(sizes) if sizes else 0.0
        return Seen(len(self.answers) / measure_s, list(self.answers), mean, utilisation)

    def _used_s(self) -> dict[str, list[float]]:
        redis = self.pool.redis
        return {
            "controller": [each.process.used_s for each in self.pool.controllers],
            "worker": [each.process.used_s for each in self.pool.workers],
            "Redis": [redis.process.used_s],
            "network": [redis.link_in.used_s, redis.link_out.used_s],
        }
