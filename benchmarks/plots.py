"""Plots the medians: throughput by connections, latency distribution, CPU time per request by process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import PERCENTILES, SYNC, Summary

OWN = "modelyard"
OWN_COLOUR = "#d62728"
OTHERS = ("#1f77b4", "#7f7f7f", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#ff7f0e")


def draw_all(summaries: Sequence[Summary], connections: Sequence[int], folder: Path) -> list[Path]:
    """Write the three figures into a folder."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sync = [each for each in summaries if each.way == SYNC]
    middle = connections[len(connections) // 2]
    colours = _colours(sync)
    drawn = []
    for name, draw in (("throughput", _throughput), ("latency", _latency), ("cpu", _cpu)):
        figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
        draw(axes, sync, connections, middle, colours)
        drawn.append(folder / f"{name}.png")
        figure.savefig(drawn[-1], dpi=120)
        plt.close(figure)
    return drawn


def _colours(sync: Sequence[Summary]) -> dict[str, str]:
    others = [name for name in dict.fromkeys(each.system for each in sync) if name != OWN]
    colours = {name: OTHERS[index % len(OTHERS)] for index, name in enumerate(others)}
    return {OWN: OWN_COLOUR, **colours}


def _throughput(
    axes: Any, sync: Sequence[Summary], connections: Sequence[int], middle: int, colours: dict[str, str]
) -> None:
    at_middle = {each.system: each.per_s for each in sync if each.connections == middle}
    order = sorted(at_middle, key=lambda name: at_middle[name])
    height = 0.8 / len(connections)
    for index, count in enumerate(connections):
        found = {each.system: each.per_s for each in sync if each.connections == count}
        places = [row + (index - (len(connections) - 1) / 2) * height for row in range(len(order))]
        bars = axes.barh(
            places,
            [found.get(name, 0) for name in order],
            height * 0.92,
            color=[colours[name] for name in order],
            alpha=0.4 + 0.6 * index / max(len(connections) - 1, 1),
        )
        labels = [f"{found[name]:,.0f}  ({count})" if name in found else "" for name in order]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(range(len(order)), order)
    axes.margins(x=0.15)
    axes.set_xlabel("predictions per second (connections)")
    axes.set_title("Throughput: one MNIST-sized sample per request, JSON over HTTP")
    axes.spines[["top", "right"]].set_visible(False)


def _latency(
    axes: Any, sync: Sequence[Summary], connections: Sequence[int], middle: int, colours: dict[str, str]
) -> None:
    for each in sync:
        if each.connections == middle:
            values = [each.latency_ms[percentile] for percentile in PERCENTILES]
            width = 2.5 if each.system == OWN else 1.5
            axes.plot(
                range(len(PERCENTILES)),
                values,
                marker=".",
                lw=width,
                color=colours[each.system],
                label=each.system,
            )
    axes.set_xticks(range(len(PERCENTILES)), [f"{percentile:g}" for percentile in PERCENTILES])
    axes.set_yscale("log")
    axes.set_xlabel("percentile of the requests")
    axes.set_ylabel("latency in ms")
    axes.set_title(f"Latency at {middle} connections")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)


def _cpu(
    axes: Any, sync: Sequence[Summary], connections: Sequence[int], middle: int, colours: dict[str, str]
) -> None:
    shown = sorted((each for each in sync if each.connections == middle), key=lambda each: -each.total_cpu_us)
    for row, each in enumerate(shown):
        left = 0.0
        parts = sorted(each.cpu_us.items(), key=lambda item: -item[1])
        for index, (name, cpu_us) in enumerate(parts):
            shade = max(0.25, 1 - 0.25 * index)
            axes.barh(row, cpu_us, left=left, color=colours[each.system], alpha=shade, edgecolor="white")
            if cpu_us > 0.09 * shown[0].total_cpu_us:
                axes.text(
                    left + cpu_us / 2, row, f"{name}\n{cpu_us:.0f}", ha="center", va="center", fontsize=7
                )
            left += cpu_us
        axes.text(left, row, f"  {each.total_cpu_us:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(shown)), [each.system for each in shown])
    axes.margins(x=0.1)
    axes.set_xlabel("CPU time per request in µs, by process")
    axes.set_title(f"CPU time per request at {middle} connections")
    axes.spines[["top", "right"]].set_visible(False)
