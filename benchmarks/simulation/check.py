"""Predictions beside measurements, with one worker and with two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.simulation.costs import Costs
from benchmarks.simulation.model import Plan
from benchmarks.simulation.run import Run, Seen

WORKERS = (1, 2)
CONNECTIONS = (64, 256)
LIMIT = 0.15
WARM_S, RUN_S = 0.5, 2.0


@dataclass(frozen=True)
class Checked:
    """A prediction and the median of what was measured."""

    workers: int
    connections: int
    per_s: tuple[float, float]
    p50_ms: tuple[float, float]

    @property
    def errors(self) -> tuple[float, float]:
        """Relative errors of the predictions: throughput, median latency."""
        return self.per_s[0] / self.per_s[1] - 1, self.p50_ms[0] / self.p50_ms[1] - 1


def predict(known: Costs, n_workers: int, connections: int, cores: int) -> Seen:
    """What the model says of a pool on one host, with its load generator."""
    run = Run(known, Plan(n_workers=n_workers, cores=cores, ahead=0))
    run.close_loop(connections)
    return run.watch(WARM_S, RUN_S)


def compare(known: Costs, points: Sequence[dict[str, Any]], cores: int) -> list[Checked]:
    """Each measured place beside its prediction."""
    found = []
    for n_workers, connections in dict.fromkeys((each["workers"], each["connections"]) for each in points):
        here = [p for p in points if (p["workers"], p["connections"]) == (n_workers, connections)]
        seen = predict(known, n_workers, connections, cores)
        found.append(
            Checked(
                n_workers,
                connections,
                (seen.per_s, median(each["per_s"] for each in here)),
                (seen.percentile_ms(50), median(each["p50_ms"] for each in here)),
            )
        )
    return found


def table(checked: Sequence[Checked], points: Sequence[dict[str, Any]]) -> str:
    """The same as Markdown."""
    lines = [
        "| workers | connections | predicted/s | measured/s | error | predicted p50 ms | measured p50 ms | error | "
        "measured, lowest to highest /s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for each in checked:
        rates = [
            p["per_s"] for p in points if (p["workers"], p["connections"]) == (each.workers, each.connections)
        ]
        lines.append(
            f"| {each.workers} | {each.connections} | {each.per_s[0]:,.0f} | {each.per_s[1]:,.0f} | "
            f"{each.errors[0]:+.0%} | {each.p50_ms[0]:.1f} | {each.p50_ms[1]:.1f} | {each.errors[1]:+.0%} | "
            f"{min(rates):,.0f} to {max(rates):,.0f} |"
        )
    return "\n".join([*lines, "", noise(points)])


def noise(points: Sequence[dict[str, Any]]) -> str:
    """What else the machine did meanwhile."""
    foreign = [point["foreign"] for point in points]
    return (
        f"Other processes took {min(foreign):.0%} to {max(foreign):.0%} of the CPU time of a round, the hypervisor "
        f"up to {max(point['steal'] for point in points):.1%}."
    )


def within_limit(checked: Sequence[Checked]) -> bool:
    """Whether every prediction is as near as it has to be."""
    return all(abs(error) <= LIMIT for each in checked for error in each.errors)
