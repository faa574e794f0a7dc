"""What two cores cannot show: many controllers and workers on hosts of their own, many versions, bursts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.simulation.costs import Cost, Costs
from benchmarks.simulation.pool_model import Plan
from benchmarks.simulation.simulate import Run, Seen

CONTROLLERS = (1, 2, 4, 8, 16)
WORKERS = (1, 4, 16, 64)
VERSIONS = (1, 10, 100, 1000)
BATCH_JOBS = (1, 16, 64, 256)
BURST_POOLS = (1, 4, 8)
CONNECTIONS = 512  # of each controller: as many as keep it busy
SLOW_MODEL_US = 1000.0
SMALL_BATCH = 16
LOADED = 0.7  # share of the largest throughput at which the latency is taken
WARM_S, RUN_S = 0.5, 1.0
SLOW_WARM_S, SLOW_RUN_S = 1.0, 3.0

BASE = 0.4  # share of the largest throughput before and after a burst
BURST = 10.0  # times that
BURST_AT_S, BURST_S, BURST_END_S = 1.0, 1.0, 10.0
BIN_S = 0.1


@dataclass(frozen=True)
class Place:
    """A pool in the study.

    Attributes:
        full: Under connections that always post.
        loaded: At `LOADED` of that throughput, requests at random.
    """

    plan: Plan
    full: Seen
    loaded: Seen


@dataclass(frozen=True)
class Burst:
    """A pool before, in and after a burst.

    Attributes:
        base_per_s: Requests per second outside it.
        p99_ms: By time in s, of the answers within `BIN_S`.
        calm_p99_ms: Before it.
        worst_ms: Longest latency.
        over_s: Seconds from its end until the latency is twice the calm one at most.
    """

    plan: Plan
    base_per_s: float
    p99_ms: list[tuple[float, float]]
    calm_p99_ms: float
    worst_ms: float
    over_s: float


def slow(known: Costs) -> Costs:
    """The same pool with a model that takes a millisecond a sample."""
    return replace(known, worker=Cost(known.worker.batch, SLOW_MODEL_US))


def place(known: Costs, plan: Plan, warm_s: float = WARM_S, run_s: float = RUN_S) -> Place:
    """One pool."""
    full = saturated(known, plan, warm_s, run_s)
    run = Run(known, plan)
    run.open_loop(lambda _: LOADED * full.per_s)
    return Place(plan, full, run.watch(warm_s, run_s))


def saturated(known: Costs, plan: Plan, warm_s: float = WARM_S, run_s: float = RUN_S) -> Seen:
    """One pool under as many connections as keep it busy."""
    run = Run(known, plan)
    run.close_loop(CONNECTIONS * plan.n_controllers)
    return run.watch(warm_s, run_s)


def replicas(known: Costs) -> Iterator[Place]:
    """N controllers and M workers of one version."""
    for n_controllers in CONTROLLERS:
        for n_workers in WORKERS:
            yield place(known, Plan(n_controllers=n_controllers, n_workers=n_workers))


def slow_models(known: Costs) -> Iterator[Place]:
    """A slow model with the defaults, with nothing sent ahead, and with small batches."""
    for n_controllers, n_workers in ((1, 1), (1, 4), (1, 16), (4, 16), (4, 64), (16, 64)):
        plan = Plan(n_controllers=n_controllers, n_workers=n_workers)
        for each in (plan, replace(plan, ahead=0), replace(plan, max_jobs=SMALL_BATCH)):
            yield place(slow(known), each, SLOW_WARM_S, SLOW_RUN_S)


def versions(known: Costs) -> Iterator[Place]:
    """Four controllers, a worker a version, requests spread evenly over the versions."""
    for n_versions in VERSIONS:
        yield place(known, Plan(n_controllers=4, n_workers=max(4, n_versions), n_versions=n_versions))


def bursts(known: Costs) -> Iterator[Burst]:
    """As many workers as controllers; ten times the requests for a second."""
    for size in BURST_POOLS:
        plan = Plan(n_controllers=size, n_workers=size)
        yield burst(known, plan, BASE * saturated(known, plan).per_s)


def burst(known: Costs, plan: Plan, base_per_s: float) -> Burst:
    """One pool in a burst."""
    ends_at_s = BURST_AT_S + BURST_S
    run = Run(known, plan)
    run.open_loop(lambda now_s: base_per_s * (BURST if BURST_AT_S <= now_s < ends_at_s else 1.0))
    seen = run.watch(0.0, BURST_END_S)
    bins: dict[int, list[float]] = {}
    for at_s, latency_s in seen.latency_s:
        bins.setdefault(int(at_s / BIN_S), []).append(latency_s)
    p99_ms = [(number * BIN_S, _p99_ms(bins[number])) for number in sorted(bins)]
    calm_ms = _p99_ms([latency_s for at_s, latency_s in seen.latency_s if at_s < BURST_AT_S])
    loud = [at_s + BIN_S for at_s, ms in p99_ms if ms > 2 * calm_ms]
    worst_ms = 1000 * max(latency_s for _, latency_s in seen.latency_s)
    return Burst(plan, base_per_s, p99_ms, calm_ms, worst_ms, max(0.0, max(loud, default=0.0) - ends_at_s))


def _p99_ms(latencies_s: Sequence[float]) -> float:
    ordered = sorted(latencies_s)
    return 1000 * ordered[int(len(ordered) * 0.99)]
