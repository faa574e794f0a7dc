"""Compares predictions with measurements, for one worker and for two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from benchmarks.simulation.calibrate import fit
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.pool_model import Plan
from benchmarks.simulation.real import Point
from benchmarks.simulation.simulate import Run, Seen

WORKERS = (1, 2)
CONNECTIONS = (64, 256)
LIMIT = 0.15
WARM_S, RUN_S = 0.5, 2.0


@dataclass
class Checked:
    """Predictions of one place, each with what was measured in the same round.

    Attributes:
        per_s: Pairs of prediction and measurement, as are `p50_ms`.
    """

    workers: int
    connections: int
    per_s: list[tuple[float, float]] = field(default_factory=list)
    p50_ms: list[tuple[float, float]] = field(default_factory=list)

    @property
    def errors(self) -> tuple[float, float]:
        """Medians of the rounds' relative errors: throughput, median latency."""
        return median(errors(self.per_s)), median(errors(self.p50_ms))


def errors(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """Relative errors of predictions."""
    return [predicted / measured - 1 for predicted, measured in pairs]


def predict(known: Costs, n_workers: int, connections: int, cores: int) -> Seen:
    """The simulation's prediction for a pool and its load generator on one host."""
    run = Run(known, Plan(n_workers=n_workers, cores=cores, ahead=0))
    run.close_loop(connections)
    return run.watch(WARM_S, RUN_S)


def compare(
    calibrating: Sequence[Point], points: Sequence[Point], wake_us: float, cores: int
) -> list[Checked]:
    """Compare each measurement with a prediction from the costs of the same pool and round.

    Steal time lengthens the predicted time.
    """
    places: dict[tuple[int, int], Checked] = {}
    for point in points:
        pool = point.turn, point.workers
        known = fit([each for each in calibrating if (each.turn, each.workers) == pool], wake_us)
        seen = predict(known, point.workers, point.connections, cores)
        place = point.workers, point.connections
        here = places.setdefault(place, Checked(*place))
        slowdown = 1 + point.stolen
        here.per_s.append((seen.per_s / slowdown, point.per_s))
        here.p50_ms.append((seen.percentile_ms(50) * slowdown, point.p50_ms))
    return [places[place] for place in sorted(places)]


def table(checked: Sequence[Checked], points: Sequence[Point]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| workers | connections | predicted/s | measured/s | error (of the rounds) | predicted p50 ms | "
        "measured p50 ms | error (of the rounds) |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in checked:
        cells = [
            str(each.workers),
            str(each.connections),
            *_cells(each.per_s, ",.0f"),
            *_cells(each.p50_ms, ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", noise(points)])


def _cells(pairs: Sequence[tuple[float, float]], form: str) -> list[str]:
    predicted, measured = (format(median(column), form) for column in zip(*pairs, strict=True))
    found = errors(pairs)
    return [predicted, measured, f"{median(found):+.0%} ({min(found):+.0%} to {max(found):+.0%})"]


def noise(points: Sequence[Point]) -> str:
    """The disturbance by other processes and the hypervisor."""
    foreign = [point.foreign for point in points]
    return (
        f"Other processes took {min(foreign):.0%} to {max(foreign):.0%} of the CPU time of a round, the hypervisor "
        f"up to {max(point.steal for point in points):.1%}."
    )


def within_limit(checked: Sequence[Checked]) -> bool:
    """Whether every median error is within `LIMIT`."""
    return all(abs(error) <= LIMIT for each in checked for error in each.errors)
