"""Sums up a run of `modelyard benchmark`, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from modelyard.commands.console_output import Listing, write_listing
from modelyard.summary import by_worker, served_by, summarise

if TYPE_CHECKING:
    from modelyard.records import Record
    from modelyard.summary import Summary


def summary_document(records: list[Record], duration_s: float) -> dict[str, Any]:
    """The run as JSON values: all of it, and the part of each worker number; None is a refused request."""
    return {
        "seconds": round(duration_s, 3),
        **asdict(summarise(records, duration_s)),
        "workers": [
            {"worker": worker, "served_by": served_by(group), **asdict(summarise(group, duration_s))}
            for worker, group in by_worker(records).items()
        ],
    }


def write_summary(records: list[Record], duration_s: float) -> None:
    """Write a table with a column for each worker number, and one for all where there are several."""
    groups = by_worker(records)
    columns = [(f"worker {worker}" if worker else "refused", group) for worker, group in groups.items()]
    if len(columns) > 1:
        columns.append(("all", records))
    cells = [
        {"model version": served_by(group), **_cells(summarise(group, duration_s))} for _, group in columns
    ]
    names = [name for name, _ in columns]
    rows = [[figure, *(column[figure] for column in cells)] for figure in cells[0]] if cells else []
    click.echo(f"{len(records)} requests in {duration_s:.2f} s")
    write_listing(Listing(("figure", *names), rows, right=names))


def _cells(summary: Summary) -> dict[str, str]:
    """One column of the table, by the name of the row."""
    times_ms = {
        "latency p50": summary.p50_ms,
        "latency p90": summary.p90_ms,
        "latency p99": summary.p99_ms,
        "latency max": summary.max_ms,
        "in the queue p50": summary.queue_wait_p50_ms,
        "inference p50": summary.inference_p50_ms,
    }
    return {
        "succeeded": f"{summary.n_succeeded} of {summary.n_requests}",
        **{name: "-" if value is None else f"{value:.2f} ms" for name, value in times_ms.items()},
        "throughput": f"{summary.throughput_per_s:.1f} per s",
        "accuracy": "-" if summary.accuracy is None else f"{summary.accuracy:.1%}",
    }
