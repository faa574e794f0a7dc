"""Writes rounds as CSV and their medians as a Markdown table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import TypeVar

PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
SYNC = "sync"
ACCEPTED = "accepted"
ALONE = "alone"  # the way that the other ways of a workload are compared with
BARE = "bare model"
NOTHING = "-"
Key = TypeVar("Key", float, str)


@dataclass(frozen=True)
class Round:
    """One measurement.

    Attributes:
        way: `SYNC`, or `ACCEPTED` for posts answered 202, timed until every outcome was written.
        per_s: Requests, or jobs, per second.
        latency_ms: By percentile; for `ACCEPTED`, the latency of the 202 answer.
        cpu_us: CPU time per request by process.
        generator_cpu_us: CPU time of the load generator per request.
        steal: Share of the machine's CPU time, as in `machine.Noise`; so is `foreign`.
        is_noisy: Whether either is above its limit.
    """

    number: int
    system: str
    way: str
    connections: int
    requests: int
    per_s: float
    errors: int
    checked: int
    wrong: int
    latency_ms: dict[float, float]
    cpu_us: dict[str, float]
    generator_cpu_us: float
    steal: float
    foreign: float
    is_noisy: bool


@dataclass(frozen=True)
class Summary:
    """Medians over the rounds of one system, way and number of connections; errors are sums."""

    system: str
    way: str
    connections: int
    n_rounds: int
    n_noisy: int
    per_s: float
    errors: int
    checked: int
    wrong: int
    latency_ms: dict[float, float]
    cpu_us: dict[str, float]

    @property
    def total_cpu_us(self) -> float:
        """CPU time per request of all processes of the system together."""
        return sum(self.cpu_us.values())


def summarise(rounds: Sequence[Round]) -> list[Summary]:
    """Medians, in the order in which systems, ways and connections first appear."""
    groups: dict[tuple[str, str, int], list[Round]] = {}
    for each in rounds:
        groups.setdefault((each.system, each.way, each.connections), []).append(each)
    return [_summary(*key, group) for key, group in groups.items()]


def _summary(system: str, way: str, connections: int, group: Sequence[Round]) -> Summary:
    return Summary(
        system=system,
        way=way,
        connections=connections,
        n_rounds=len(group),
        n_noisy=sum(each.is_noisy for each in group),
        per_s=median(each.per_s for each in group),
        errors=sum(each.errors for each in group),
        checked=sum(each.checked for each in group),
        wrong=sum(each.wrong for each in group),
        latency_ms=_medians([each.latency_ms for each in group]),
        cpu_us=_medians([each.cpu_us for each in group]),
    )


def _medians(maps: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    names = dict.fromkeys(name for each in maps for name in each)
    return {name: median(each.get(name, 0.0) for each in maps) for name in names}


def write_csv(rounds: Iterable[Round], path: Path) -> None:
    """Write every round; columns that hold several numbers are JSON."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Round)])
        for each in rounds:
            writer.writerow([_cell(value) for value in asdict(each).values()])


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, dict) else value


def table(summaries: Sequence[Summary], connections: Sequence[int], about: Mapping[str, str]) -> str:
    """The Markdown table, one row per system.

    Args:
        connections: Numbers of connections, ascending; latency and CPU are shown for the middle one.
        about: System to versions and configuration.
    """
    middle = connections[len(connections) // 2]
    head = [
        "system",
        *(f"req/s, {count} conn." for count in connections),
        f"p50 / p99 ms, {connections[0]} conn.",
        f"p50 / p99 ms, {middle} conn.",
        f"CPU µs per request, {middle} conn.",
        "accepted jobs/s",
        "errors",
        "checked, wrong",
        "noisy rounds",
        "versions and configuration",
    ]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 2), "---"])]
    by_system: dict[str, list[Summary]] = {}
    for each in summaries:
        by_system.setdefault(each.system, []).append(each)
    for system, group in by_system.items():
        lines.append(_line(_row(system, group, connections, middle, about.get(system, ""))))
    return "\n".join(lines)


def _row(
    system: str, group: Sequence[Summary], connections: Sequence[int], middle: int, about: str
) -> list[str]:
    sync = {each.connections: each for each in group if each.way == SYNC}
    accepted = [each for each in group if each.way == ACCEPTED]
    return [
        system,
        *(f"{sync[count].per_s:,.0f}" if count in sync else NOTHING for count in connections),
        _latency(sync.get(connections[0])),
        _latency(sync.get(middle)),
        _cpu(sync.get(middle)),
        f"{accepted[0].per_s:,.0f}" if accepted else NOTHING,
        str(sum(each.errors for each in group)),
        f"{sum(each.checked for each in group):,}, {sum(each.wrong for each in group)}",
        f"{sum(each.n_noisy for each in group)} of {sum(each.n_rounds for each in group)}",
        about,
    ]


def _latency(summary: Summary | None) -> str:
    return f"{summary.latency_ms[50.0]:.1f} / {summary.latency_ms[99.0]:.1f}" if summary else NOTHING


def _cpu(summary: Summary | None) -> str:
    if not summary:
        return NOTHING
    parts = sorted(summary.cpu_us.items(), key=lambda item: -item[1])
    named = ", ".join(f"{name} {cpu_us:.0f}" for name, cpu_us in parts if cpu_us >= 1)
    return f"{summary.total_cpu_us:.0f} ({named})" if len(parts) > 1 else f"{summary.total_cpu_us:.0f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def ratios(summaries: Sequence[Summary], connections: Sequence[int], own: str = "modelyard") -> str:
    """One line of Markdown per other system: the ratio of our requests per second to its."""
    per_s = {(each.system, each.connections): each.per_s for each in summaries if each.way == SYNC}
    lines = []
    for system in dict.fromkeys(each.system for each in summaries):
        cells = [
            f"{per_s[own, count] / per_s[system, count]:.2f} x at {count}"
            for count in connections
            if per_s.get((own, count)) and per_s.get((system, count))
        ]
        if system != own and cells:
            lines.append(f"- {own} / {system}: {', '.join(cells)}")
    return "\n".join(lines)


def ways_table(summaries: Sequence[Summary], about: Mapping[str, str]) -> str:
    """The Markdown table of a workload with several kinds of requests: throughput and latency of each."""
    cells = list(dict.fromkeys((each.way, each.connections) for each in summaries))
    head = ["system"]
    for way, count in cells:
        head += [f"{way}, {count} conn.: req/s", "p50 / p99 ms"]
    head += ["errors", "checked, wrong", "noisy rounds", "versions and configuration"]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 2), "---"])]
    for system in dict.fromkeys(each.system for each in summaries):
        group = [each for each in summaries if each.system == system]
        found = {(each.way, each.connections): each for each in group}
        row = [system]
        for cell in cells:
            row += [_rate(found[cell].per_s) if cell in found else NOTHING, _latency(found.get(cell))]
        row += [
            str(sum(each.errors for each in group)),
            f"{sum(each.checked for each in group):,}, {sum(each.wrong for each in group)}",
            f"{sum(each.n_noisy for each in group)} of {sum(each.n_rounds for each in group)}",
            about.get(system, ""),
        ]
        lines.append(_line(row))
    return "\n".join(lines)


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def ways_ratios(summaries: Sequence[Summary], own: str = "modelyard") -> str:
    """One line per other system: our throughput in its; beside them, our latency and the bare call's, or `ALONE`'s."""
    lines = []
    mine = {(each.way, each.connections): each for each in summaries if each.system == own}
    for system in dict.fromkeys(each.system for each in summaries if each.system != own):
        cells = []
        for each in summaries:
            if each.system != system:
                continue
            # The model alone was called with one kind of samples: every way is compared with it.
            for (way, count), ours in mine.items():
                if count == each.connections and each.per_s and (way == each.way or system == BARE):
                    cells.append(f"{ours.per_s / each.per_s:.2f} x at {way}, {count}")
        lines.append(f"- {own} / {system}: {'; '.join(cells)}")
    for bare in [each for each in summaries if each.system == BARE and each.connections == 1]:
        for (way, count), ours in mine.items():
            if count == 1:
                p50, bare_p50 = ours.latency_ms[50.0], bare.latency_ms[50.0]
                over = p50 - 1.15 * bare_p50
                lines.append(f"- p50 at {way}, 1: {p50:.1f} ms, 1.15 x the bare call {over:+.1f} ms")
    for (way, count), ours in mine.items():
        if way != ALONE and (ALONE, count) in mine:
            ratio = ours.latency_ms[99.0] / mine[ALONE, count].latency_ms[99.0]
            lines.append(f"- p99 at {way}, {count}: {ratio:.2f} x of that {ALONE}")
    return "\n".join(lines)
