"""The pool as stations that spend the calibrated costs: controllers with group commit, one Redis, workers.

Follows `controller/dispatch.py`, `app/ledger` and `workers/batch_runner.py` step by step, for callers that wait for
their outcome; the rules of group commit are the product's own, `controller/batching.py`. How a process's cost divides
among its steps was not measured, only the whole: see `SHARES`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from math import inf
from random import Random

from benchmarks.simulation.costs import Cost, Costs
from benchmarks.simulation.simulated_time import Action, Clock, Host, Link, Process
from controller import batching

# Shares of a batch's cost and of a job's, by step. They move work within a round, and leave its sum as it is.
SHARES = {
    "receive": (0.0, 0.70),  # controller: read, decode, route
    "send": (0.50, 0.05),
    "hear": (0.25, 0.02),  # the notice; what waits is sent before anybody is answered
    "complete": (0.25, 0.0),
    "reply": (0.0, 0.08),  # an answer's body
    "write": (0.0, 0.15),  # to its connection, once all answers of the batch are there
    "take": (0.4, 0.0),  # worker: waiting for a batch, and taking it
    "infer": (0.3, 1.0),
    "end": (0.3, 0.0),  # what a worker does once the outcome is written
    "accept": (0.25, 0.50),  # Redis
    "ask": (0.25, 0.0),
    "claim": (0.25, 0.40),
    "finish": (0.25, 0.10),
}
SEED = 0
# Of forward passes of like batches 0.3 to 0.9 was measured at 64 and 256 connections. With 0.3 and less, callers go on
# as they began, in step or by turns, and the dice of the first moments decide on a fifth of the throughput.
VARIATION = 0.5
IN_SHARES = {"accept": (0.4, 0.97), "ask": (0.1, 0.0), "claim": (0.2, 0.0), "finish": (0.3, 0.03)}
OUT_SHARES = {"accept": (0.1, 0.0), "ask": (0.3, 0.0), "claim": (0.3, 0.96), "finish": (0.3, 0.04)}


@dataclass(frozen=True)
class Plan:
    """A pool.

    Attributes:
        n_workers: Worker `i` serves version `i % n_versions`.
        ahead: `MODELYARD_BATCHES_AHEAD`; the rest of group commit as the product's defaults have it.
        cores: Of the one host that all processes share; 0 gives each a core of its own.
        link_bytes_per_s: Of Redis's network card, each way; where all share a host, bytes cost no time.
        latency_s: One way between two hosts.
        variation: Of what a step takes, standard deviation by mean.
    """

    n_controllers: int = 1
    n_workers: int = 1
    n_versions: int = 1
    ahead: int = 1
    cores: int = 0
    link_bytes_per_s: float = 1.25e9
    latency_s: float = 50e-6
    max_jobs: int = 256
    hold_s: float = 0.020
    hold_behind_s: float = 0.200
    variation: float = VARIATION


@dataclass(eq=False, slots=True)
class Job:
    """A request; `done` is called with its answer."""

    version: int
    done: Action


@dataclass(eq=False, slots=True)
class Batch:
    """Jobs of one version on their way."""

    controller: Controller
    version: int
    jobs: list[Job]


@dataclass(eq=False, slots=True)
class Lane:
    """One version's jobs in one controller.

    Attributes:
        timer: Changes whenever jobs are sent, so that an older timer does nothing.
    """

    unsent: list[Job] = field(default_factory=list)
    sent_batches: int = 0
    sent_jobs: int = 0
    pass_ms: float = inf
    asks_at_end_of_turn: bool = False
    timer: int = 0
    is_held: bool = False


class Steps:
    """What each step costs, from the whole costs and their shares."""

    def __init__(self, costs: Costs) -> None:
        whole = {
            **dict.fromkeys(("receive", "send", "hear", "complete", "reply", "write"), costs.controller),
            **dict.fromkeys(("take", "infer", "end"), costs.worker),
            **dict.fromkeys(("accept", "ask", "claim", "finish"), costs.redis),
        }
        self.cpu_s = {
            name: Cost(whole[name].batch * batch * 1e-6, whole[name].job * job * 1e-6)
            for name, (batch, job) in SHARES.items()
        }
        self.in_bytes = {
            n: Cost(costs.to_redis.batch * b, costs.to_redis.job * j) for n, (b, j) in IN_SHARES.items()
        }
        self.out_bytes = {
            n: Cost(costs.from_redis.batch * b, costs.from_redis.job * j) for n, (b, j) in OUT_SHARES.items()
        }


class Pool:
    """All of it.

    Attributes:
        open_jobs: By version, accepted or held, without an outcome.
    """

    def __init__(self, clock: Clock, costs: Costs, plan: Plan) -> None:
        self.clock, self.costs, self.plan = clock, costs, plan
        self.steps = Steps(costs)
        self._dice = Random(SEED)
        self._shared = Host(clock, plan.cores) if plan.cores else None
        self.redis = Redis(self)
        self.workers = [Worker(self, number % plan.n_versions) for number in range(plan.n_workers)]
        self.controllers = [Controller(self) for _ in range(plan.n_controllers)]
        self.open_jobs = [0] * plan.n_versions
        self.replicas = [0] * plan.n_versions
        for worker in self.workers:
            self.replicas[worker.version] += 1

    def process(self) -> Process:
        """A new process, on the shared host or on its own."""
        return Process(self.clock, self._shared or Host(self.clock, 1), self.costs.wake_us * 1e-6, self.vary)

    def vary(self, mean_s: float) -> float:
        """A cost, gamma distributed."""
        square = self.plan.variation**2
        return mean_s * self._dice.gammavariate(1 / square, square) if square else mean_s

    def link(self) -> Link:
        """One direction of Redis's network."""
        if self._shared:
            return Link(self.clock, float("inf"), 0.0)
        return Link(self.clock, self.plan.link_bytes_per_s, self.plan.latency_s)


class Controller:
    """Receives requests and sends them in batches."""

    def __init__(self, pool: Pool) -> None:
        self.process = pool.process()
        self._pool, self._cpu_s = pool, pool.steps.cpu_s
        self._lanes = [Lane() for _ in range(pool.plan.n_versions)]
        plan = pool.plan
        self._limits = batching.Limits(
            max_jobs=plan.max_jobs,
            max_samples=plan.max_jobs,
            hold_ms=plan.hold_s * 1000,
            hold_behind_ms=plan.hold_behind_s * 1000,
            ahead=plan.ahead,
        )

    def receive(self, job: Job) -> None:
        """A request arrives."""
        self.process.do(self._cpu_s["receive"].job, partial(self._submit, job))

    def _submit(self, job: Job) -> None:
        lane = self._lanes[job.version]
        lane.unsent.append(job)
        self._pool.open_jobs[job.version] += 1
        if not lane.asks_at_end_of_turn:
            lane.asks_at_end_of_turn = True
            self.process.do(0.0, partial(self._send, job.version, False))

    def _load(self, version: int) -> batching.Load:
        lane = self._lanes[version]
        n_unsent = len(lane.unsent)
        return batching.Load(
            unsent_jobs=n_unsent,
            unsent_samples=n_unsent,
            unawaited_jobs=0,
            sent_batches=lane.sent_batches,
            sent_jobs=lane.sent_jobs,
            other_jobs=self._pool.open_jobs[version] - n_unsent - lane.sent_jobs,
            workers=self._pool.replicas[version],
            pass_ms=lane.pass_ms,
            usual_jobs=1.0,
            batch_ms=self._batch_ms,
        )

    def _batch_ms(self, n_jobs: float) -> float:
        return 1000 * sum(self._cpu_s[step].of(n_jobs) for step in ("take", "infer", "end"))

    def _send_held(self, version: int, timer: int) -> None:
        if self._lanes[version].timer == timer:
            self._send(version, True)

    def _send(self, version: int, is_due: bool) -> None:
        lane = self._lanes[version]
        lane.asks_at_end_of_turn = False
        if not lane.unsent:
            return
        plan = batching.plan(self._load(version), self._limits, repeat(1), is_due=is_due)
        if plan.sizes:
            lane.timer += 1
            lane.is_held = False
        for size in plan.sizes:
            jobs, lane.unsent = lane.unsent[:size], lane.unsent[size:]
            lane.sent_batches += 1
            lane.sent_jobs += len(jobs)
            batch = Batch(self, version, jobs)
            self.process.do(self._cpu_s["send"].of(len(jobs)), partial(self._pool.redis.accept, batch))
        if lane.unsent and not lane.is_held:
            lane.is_held = True
            send = partial(self._send_held, version, lane.timer)
            self._pool.clock.after(plan.hold_ms / 1000, partial(self.process.do, 0.0, send))

    def hear(self, batch: Batch) -> None:
        """The notice of a batch's outcome arrives."""
        self.process.do(self._cpu_s["hear"].of(len(batch.jobs)), partial(self._complete, batch))

    def _complete(self, batch: Batch) -> None:
        lane = self._lanes[batch.version]
        lane.sent_batches -= 1
        lane.sent_jobs -= len(batch.jobs)
        self._pool.open_jobs[batch.version] -= len(batch.jobs)
        lane.pass_ms = 1000 * self._cpu_s["infer"].of(len(batch.jobs)) / len(batch.jobs)
        self._send(batch.version, False)
        self.process.do(self._cpu_s["complete"].of(0), lambda: None)
        self.process.do(self._cpu_s["reply"].of(len(batch.jobs)), lambda: None)
        for job in batch.jobs:
            self.process.do(self._cpu_s["write"].job, job.done)


class Redis:
    """One single-threaded server, with its network card; a queue a version."""

    def __init__(self, pool: Pool) -> None:
        self.process = pool.process()
        self.link_in, self.link_out = pool.link(), pool.link()
        self._steps = pool.steps
        self._queues: list[deque[Batch]] = [deque() for _ in range(pool.plan.n_versions)]
        self._askers: list[deque[Worker]] = [deque() for _ in range(pool.plan.n_versions)]
        self.batch_sizes: list[int] = []

    def _call(self, step: str, n_jobs: int, done: Action) -> None:
        cost_s = self._steps.cpu_s[step].of(n_jobs)
        self.link_in.send(self._steps.in_bytes[step].of(n_jobs), partial(self.process.do, cost_s, done))

    def _answer(self, step: str, n_jobs: int, arrived: Action) -> None:
        self.link_out.send(self._steps.out_bytes[step].of(n_jobs), arrived)

    def accept(self, batch: Batch) -> None:
        """Store a batch and wake a worker."""
        self.batch_sizes.append(len(batch.jobs))
        self._call("accept", len(batch.jobs), partial(self._stored, batch))

    def _stored(self, batch: Batch) -> None:
        self._queues[batch.version].append(batch)
        self._match(batch.version)

    def ask(self, worker: Worker) -> None:
        """A worker waits for its next batch."""
        self._call("ask", 0, partial(self._asked, worker))

    def _asked(self, worker: Worker) -> None:
        self._askers[worker.version].append(worker)
        self._match(worker.version)

    def _match(self, version: int) -> None:
        if self._queues[version] and self._askers[version]:
            worker, batch = self._askers[version].popleft(), self._queues[version].popleft()
            self._answer("ask", 0, partial(worker.take, batch))

    def claim(self, batch: Batch, claimed: Action) -> None:
        """A worker fetches a batch."""
        n_jobs = len(batch.jobs)
        self._call("claim", n_jobs, partial(self._answer, "claim", n_jobs, claimed))

    def finish(self, batch: Batch, finished: Callable[[Batch | None], None]) -> None:
        """A worker writes a batch's outcome, which its controller hears of at once, and takes the next one if any."""
        n_jobs = len(batch.jobs)

        def written() -> None:
            self._answer("finish", n_jobs, partial(batch.controller.hear, batch))
            if not self._queues[batch.version]:
                self._answer("finish", 0, partial(finished, None))
                return
            following = self._queues[batch.version].popleft()
            n_following = len(following.jobs)
            answer = partial(self._answer, "claim", n_following, partial(finished, following))
            self.process.do(self._steps.cpu_s["claim"].of(n_following), answer)

        self._call("finish", n_jobs, written)


class Worker:
    """Runs one batch after the other; waits for Redis's answers without using its core."""

    def __init__(self, pool: Pool, version: int) -> None:
        self.process = pool.process()
        self.version = version
        self._redis, self._cpu_s = pool.redis, pool.steps.cpu_s
        self._redis.ask(self)

    def take(self, batch: Batch) -> None:
        """A message has arrived."""
        claim: Callable[[], None] = partial(self._redis.claim, batch, partial(self._infer, batch))
        self.process.do(self._cpu_s["take"].of(0), claim)

    def _infer(self, batch: Batch) -> None:
        finish = partial(self._redis.finish, batch, self._end)
        self.process.do(self._cpu_s["infer"].of(len(batch.jobs)), finish)

    def _end(self, following: Batch | None) -> None:
        onward = partial(self._infer, following) if following else partial(self._redis.ask, self)
        self.process.do(self._cpu_s["end"].of(0), onward)
