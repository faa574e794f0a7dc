"""`modelyard benchmark`: sends many samples, records what came of each, and shows how long they took."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from client.records import Record
    from client.samples import LabelledSamples
    from client.summary import Summary

HEADINGS = ("succeeded", "p50", "p90", "p99", "max", "queue p50", "infer p50", "per s", "accuracy")


@click.command("benchmark")
@click.option("--n", type=click.IntRange(1), default=100, show_default=True, help="Samples to send.")
@click.option("--worker", type=int, metavar="N", help="Worker number to use instead of the policy's choice.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Requests under way at once.",
)
@click.option(
    "--data",
    type=click.Choice(["dummy", "digits"]),
    default="dummy",
    show_default=True,
    help="Noise of a digit's shape, or held-out digits.",
)
@click.option("--seed", type=int, help="Makes the samples the same in every run.")
@click.option("--url", default="http://127.0.0.1:9000", show_default=True, help="The controller.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("worker_benchmark_records.json"),
    show_default=True,
    help="File that records are appended to.",
)
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("worker_benchmark_latency.png"),
    show_default=True,
    help="Picture to draw.",
)
def command(
    n: int,
    worker: int | None,
    concurrency: int,
    data: str,
    seed: int | None,
    url: str,
    output: Path,
    plot: Path,
) -> None:
    """Send many samples to a controller, record them and plot their latencies."""
    from rich.console import Console

    from client import Client
    from client.plot import draw_latencies
    from client.samples import drawn_digits, dummies

    console = Console()
    samples = (drawn_digits if data == "digits" else dummies)(n, seed)
    with Client(url) as client:
        client.workers()  # no controller: say so before a file is made
    _append(output, [])  # a file that cannot be written should cost no run
    records: list[Record] = []
    started_s = time.perf_counter()
    try:
        asyncio.run(_send(console, url, samples, worker, concurrency, records))
    finally:
        duration_s = time.perf_counter() - started_s
        _append(output, records)
    console.print(_table(records, duration_s))
    draw_latencies(records, plot)
    click.echo(f"{len(records)} records appended to {output}, latencies drawn in {plot}")


async def _send(
    console: Console,
    url: str,
    samples: LabelledSamples,
    worker: int | None,
    concurrency: int,
    records: list[Record],
) -> None:
    """Send all samples with a progress bar; `records` grows as outcomes come in."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from client import AsyncClient
    from client.benchmark import Benchmark

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("predicting", total=len(samples))

        def take(record: Record) -> None:
            records.append(record)
            progress.advance(bar)

        async with AsyncClient(url) as client:
            await Benchmark(client, samples, worker=worker, on_record=take).run(concurrency)


def _append(output: Path, records: list[Record]) -> None:
    """Append records, and say so if the file that was there had to be moved."""
    from client.records import append_records

    kept_aside = append_records(output, records)
    if kept_aside is not None:
        click.secho(f"{output} was not a JSON list of records; it is kept as {kept_aside}", fg="yellow")


def _table(records: list[Record], duration_s: float) -> Table:
    """Latencies of the run: a row per worker number, and one for all where there are several."""
    from rich.markup import escape
    from rich.table import Table

    from client.summary import by_worker, served_by, summarise

    table = Table(
        title=f"{len(records)} requests in {duration_s:.2f} s; latencies in ms", title_justify="left"
    )
    for name in ("worker", "model version"):
        table.add_column(name, overflow="fold")
    for name in HEADINGS:
        table.add_column(name, justify="right")
    groups = by_worker(records)
    for worker, group in groups.items():
        name = "none" if worker is None else str(worker)
        table.add_row(name, escape(served_by(group)), *_cells(summarise(group, duration_s)))
    if len(groups) > 1:
        table.add_section()
        table.add_row("all", "", *_cells(summarise(records, duration_s)))
    return table


def _cells(summary: Summary) -> list[str]:
    """One row of the table, under `HEADINGS`."""
    latencies_ms = (summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.max_ms)
    parts_ms = (summary.queue_wait_p50_ms, summary.inference_p50_ms)
    return [
        f"{summary.n_succeeded}/{summary.n_requests}",
        *("-" if value is None else f"{value:.1f}" for value in latencies_ms),
        *("-" if value is None else f"{value:.2f}" for value in parts_ms),
        f"{summary.throughput_per_s:.1f}",
        "-" if summary.accuracy is None else f"{summary.accuracy:.1%}",
    ]
