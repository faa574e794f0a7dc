"""Writes the tables of `benchmarks/scaling.md` and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.plots import OTHERS, OWN_COLOUR
from benchmarks.simulation.check import noise
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.real import Point
from benchmarks.simulation.study import BATCH_JOBS, BURST, CONTROLLERS, LOADED, WORKERS, Burst, Place

LINE_BYTES_PER_S = 1.25e9


def fill(page: Path, parts: Mapping[str, str]) -> None:
    """Replace the text between `<!-- name -->` and `<!-- end -->` in a page.

    Raises:
        ValueError: The page has no such part.
    """
    text = page.read_text()
    for name, part in parts.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not (begin and end):
            raise ValueError(f"{page} lacks the part {name}")
        text = f"{before}{begin}{part}\n{end}{after}"
    page.write_text(text)


def costs_table(known: Costs, about: Mapping[str, Any], points: Sequence[Point]) -> str:
    """The measured costs, and the disturbance of the measurement."""
    connections = sorted({point.connections for point in points})
    n_rounds = len({point.turn for point in points})
    lines = [
        f"Measured {about['measured_at']} on {about['machine']} with {about['load']}: {n_rounds} "
        f"rounds, each with {', '.join(map(str, connections))} connections. {noise(points)}",
        "",
        "| one worker, all rounds | per batch | per job |",
        "| --- | ---: | ---: |",
    ]
    for label, cost in (
        ("controller, µs of CPU", known.controller),
        ("worker, µs of CPU", known.worker),
        ("Redis, µs of CPU", known.redis),
        ("bytes to Redis", known.to_redis),
        ("bytes from Redis", known.from_redis),
    ):
        lines.append(f"| {label} | {cost.batch:,.0f} | {cost.job:,.1f} |")
    lines.append(f"| load generator, µs of CPU | | {known.client_us:.1f} |")
    lines.append(f"| wake-up of a sleeping reader, µs | {known.wake_us:.1f} | |")
    return "\n".join(lines)


def limits_table(known: Costs) -> str:
    """The maximum throughput of each kind of process, by jobs per batch."""
    stations = (
        ("one controller", known.controller, 1e6),
        ("one worker", known.worker, 1e6),
        ("Redis, CPU", known.redis, 1e6),
        ("Redis, network in", known.to_redis, LINE_BYTES_PER_S),
        ("Redis, network out", known.from_redis, LINE_BYTES_PER_S),
    )
    lines = [
        _line(["maximum jobs/s by jobs per batch", *map(str, BATCH_JOBS)]),
        _line(["---", *["---:"] * len(BATCH_JOBS)]),
    ]
    for label, cost, per_s in stations:
        lines.append(_line([label, *(f"{per_s * n / cost.of(n):,.0f}" for n in BATCH_JOBS)]))
    shares = (known.controller.of(n) / known.redis.of(n) for n in BATCH_JOBS)
    lines.append(_line(["controllers per Redis", *(f"{share:.1f}" for share in shares)]))
    return "\n".join(lines)


def replicas_table(places: Sequence[Place]) -> str:
    """Throughput, bottleneck and latency by controllers and workers."""
    found = {(each.plan.n_controllers, each.plan.n_workers): each for each in places}
    lines = [
        _line(["controllers", *(f"{m} worker{'s' * (m > 1)}" for m in WORKERS)]),
        _line(["---:", *["---"] * len(WORKERS)]),
    ]
    for n in CONTROLLERS:
        cells = [found[n, m] for m in WORKERS]
        lines.append(
            _line([str(n), *(f"{_rate(each)}; p99 {each.loaded.percentile_ms(99):.1f} ms" for each in cells)])
        )
    return "\n".join(lines)


def places_table(places: Sequence[Place], *columns: str) -> str:
    """One row per pool; `columns` are fields of its plan."""
    lines = [
        _line(
            [
                *(name.removeprefix("n_") for name in columns),
                "jobs/s",
                "busiest",
                "jobs per batch",
                f"p99 ms at {LOADED:.0%}",
            ]
        ),
        _line([*["---:"] * (len(columns) + 1), "---", "---:", "---:"]),
    ]
    for each in places:
        values = [str(getattr(each.plan, name)) for name in columns]
        p99_ms = f"{each.loaded.percentile_ms(99):.1f}"
        lines.append(
            _line([*values, f"{each.full.per_s:,.0f}", _busiest(each), f"{each.full.batch_jobs:.1f}", p99_ms])
        )
    return "\n".join(lines)


def bursts_table(bursts: Sequence[Burst]) -> str:
    """One row per pool."""
    lines = [
        "| controllers = workers | requests/s | requests/s in the burst | p99 before, ms | longest latency, ms "
        "| recovery, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {each.plan.n_controllers} | {each.base_per_s:,.0f} | {BURST * each.base_per_s:,.0f} | "
            f"{each.calm_p99_ms:.1f} | {each.worst_ms:,.0f} | {each.over_s:.1f} |"
            for each in bursts
        ),
    ]
    return "\n".join(lines)


def draw(places: Sequence[Place], bursts: Sequence[Burst], path: Path) -> None:
    """Plot throughput by controllers, and latency in a burst."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    colours = (*OTHERS[: len(WORKERS) - 1], OWN_COLOUR)
    for n_workers, colour in zip(WORKERS, colours, strict=True):
        row = [each for each in places if each.plan.n_workers == n_workers]
        left.plot(
            [each.plan.n_controllers for each in row],
            [each.full.per_s for each in row],
            marker="o",
            color=colour,
            label=f"{n_workers} worker{'s' * (n_workers > 1)}",
        )
    left.set_xscale("log", base=2)
    left.set_xticks(CONTROLLERS, [str(n) for n in CONTROLLERS])
    left.set_ylim(bottom=0)
    left.set_xlabel("controllers, each on a core of its own")
    left.set_ylabel("predictions per second")
    left.set_title("One version, one Redis (simulated)")
    for each, colour in zip(bursts, OTHERS, strict=False):
        label = f"{each.plan.n_controllers} of each"
        right.plot(*zip(*each.p99_ms, strict=True), color=colour, label=label)
    right.set_yscale("log")
    right.set_xlabel("time in s")
    right.set_ylabel("p99 of the answers within 0.1 s, in ms")
    right.set_title(f"Controllers and workers in a burst of {BURST:.0f} times the requests (simulated)")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _rate(each: Place) -> str:
    return f"{each.full.per_s:,.0f}/s ({_busiest(each)})"


def _busiest(each: Place) -> str:
    kind, share = each.full.busiest
    return f"{kind} {share:.0%}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
