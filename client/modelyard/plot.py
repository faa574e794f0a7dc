"""Draws the latencies of a benchmark run. The only file of the client that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modelyard.client_errors import RecordsError
from modelyard.errors import ConfigurationError
from modelyard.records import Record
from modelyard.summary import by_worker, served_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
LOG_SCALE_FROM_RATIO = 20.0
N_BINS = 40


def draw_latencies(records: Sequence[Record], path: Path) -> None:
    """Draw client latency over time and its distribution, with one colour per worker.

    Args:
        records: Records of one run; unsuccessful ones are ignored.
        path: PNG file to write.

    Raises:
        ConfigurationError: matplotlib is not installed.
        RecordsError: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigurationError("the plot needs matplotlib: pip install 'modelyard-client[plots]'") from None
    succeeded = [record for record in records if record.status == "succeeded"]
    figure = Figure(figsize=(11, 5), layout="constrained", facecolor="white")
    if succeeded:
        _draw(figure, succeeded)
    figure.suptitle(_title(records, succeeded), fontsize=12)
    try:
        figure.savefig(path, dpi=130, format="png")
    except OSError as error:
        raise RecordsError(f"cannot write {path}: {error.strerror or error}; choose another --plot") from None


def _title(records: Sequence[Record], succeeded: Sequence[Record]) -> str:
    title = f"{len(succeeded)} of {len(records)} requests succeeded"
    if not succeeded:
        return title
    p50_ms, p99_ms = np.percentile([record.client_latency_ms for record in succeeded], [50, 99])
    return f"{title}: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms"


def _draw(figure: Figure, records: Sequence[Record]) -> None:
    over_time, distribution = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    bins_ms = _scale(over_time, np.array([record.client_latency_ms for record in records]))
    start_s = min(_sent_at_s(record) for record in records)
    for place, (worker, group) in enumerate(by_worker(records).items()):
        colour = COLOURS[place % len(COLOURS)]
        latencies_ms = [record.client_latency_ms for record in group]
        sent_s = [_sent_at_s(record) - start_s for record in group]
        label = f"worker {worker}: {served_by(group)}, {len(group)} requests"
        over_time.scatter(sent_s, latencies_ms, s=16, alpha=0.55, linewidths=0, color=colour, label=label)
        over_time.axhline(float(np.median(latencies_ms)), color=colour, linewidth=1.2, linestyle="--")
        distribution.hist(
            latencies_ms, bins=bins_ms.tolist(), orientation="horizontal", color=colour, alpha=0.55
        )
    _dress(over_time, distribution)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _scale(axes: Axes, latencies_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Set the latency axis, logarithmic if a few outliers would flatten the rest; returns its bins."""
    from matplotlib.ticker import LogLocator

    least_ms, most_ms = float(latencies_ms.min()), float(latencies_ms.max())
    if most_ms > LOG_SCALE_FROM_RATIO * least_ms > 0:
        axes.set_yscale("log", subs=())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        return np.geomspace(least_ms, most_ms, N_BINS + 1)
    axes.set_ylim(0, most_ms * 1.06 or 1)
    return np.linspace(0, most_ms or 1, N_BINS + 1)


def _dress(over_time: Axes, distribution: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    over_time.set_title("Over the run (dashed: median)", fontsize=10, loc="left")
    over_time.set_xlabel("seconds since the first request")
    over_time.set_ylabel("latency at the client (ms)")
    over_time.margins(x=0.02)
    distribution.set_title("Distribution", fontsize=10, loc="left")
    distribution.set_xlabel("requests")
    distribution.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for axes in (over_time, distribution):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)


def _sent_at_s(record: Record) -> float:
    return datetime.fromisoformat(record.timestamp).timestamp()
