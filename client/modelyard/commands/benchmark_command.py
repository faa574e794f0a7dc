"""`modelyard benchmark`: sends many samples, records what came of each, and shows how long they took."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelyard.commands.controller_option import URL_OPTION, controller_url

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from modelyard.records import Record
    from modelyard.samples import LabelledSamples
    from modelyard.summary import Summary


@click.command("benchmark")
@click.option("--n", type=click.IntRange(1), default=100, show_default=True, help="Samples to send.")
@click.option("--worker", type=int, metavar="N", help="Worker number to use instead of the policy's choice.")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Number of concurrent requests.",
)
@click.option(
    "--data",
    type=click.Choice(["dummy", "digits"]),
    default="dummy",
    show_default=True,
    help="Noise of a digit's shape, or held-out digits.",
)
@click.option("--seed", type=int, help="Seed of the samples.")
@URL_OPTION
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
    help="File for the plot.",
)
def command(
    n: int,
    worker: int | None,
    concurrency: int,
    data: str,
    seed: int | None,
    url: str | None,
    output: Path,
    plot: Path,
) -> None:
    """Send many samples to a controller, record them and plot their latencies."""
    from rich.console import Console

    from modelyard import Client
    from modelyard.plot import draw_latencies
    from modelyard.samples import drawn_digits, dummies

    console = Console()
    url = controller_url(url)
    samples = (drawn_digits if data == "digits" else dummies)(n, seed)
    with Client(url) as client:
        client.ready()  # no controller: say so before a file is made
    _append(output, [])  # a file that cannot be written should cost no run
    records: list[Record] = []
    started_s = time.perf_counter()
    try:
        asyncio.run(_send(console, url, samples, worker, concurrency, records))
    finally:
        duration_s = time.perf_counter() - started_s
        _append(output, records)
    console.print(_table(records, duration_s))
    if find_spec("matplotlib") is None:
        click.echo(f"{len(records)} records appended to {output}")
        click.echo("no plot: it needs matplotlib: pip install 'modelyard-client[plots]'", err=True)
        return
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

    from modelyard import AsyncClient
    from modelyard.benchmark import Benchmark

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("predicting", total=len(samples))

        def take(record: Record) -> None:
            records.append(record)
            progress.advance(bar)

        run = Benchmark(lambda: AsyncClient(url), samples, worker=worker, on_record=take)
        await run.run(concurrency)


def _append(output: Path, records: list[Record]) -> None:
    """Append records, and say so if the file that was there had to be moved."""
    from modelyard.records import append_records

    kept_aside = append_records(output, records)
    if kept_aside is not None:
        click.secho(f"{output} was not a JSON list of records; it is kept as {kept_aside}", fg="yellow")


def _table(records: list[Record], duration_s: float) -> Table:
    """Sum the run up: a column per worker number, and one for all where there are several."""
    from rich.markup import escape
    from rich.table import Table

    from modelyard.summary import by_worker, served_by, summarise

    groups = by_worker(records)
    columns = [(f"worker {worker}" if worker else "refused", group) for worker, group in groups.items()]
    if len(columns) > 1:
        columns.append(("all", records))
    table = Table(title=f"{len(records)} requests in {duration_s:.2f} s", title_justify="left")
    table.add_column(no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", overflow="fold")
    table.add_row("model version", *(escape(served_by(group)) for _, group in columns))
    cells = [_cells(summarise(group, duration_s)) for _, group in columns]
    for name in cells[0] if cells else ():
        table.add_row(name, *(column[name] for column in cells))
    return table


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
