"""`modelyard benchmark`: sends many samples, records what came of each, and shows how long they took."""

from __future__ import annotations

import asyncio
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from modelyard.commands.console_output import JSON_OPTION, examples, write_json
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.version_options import version_options

if TYPE_CHECKING:
    from modelyard.benchmark import Benchmark
    from modelyard.calls import SubmitOptions
    from modelyard.records import Record

EXAMPLES = examples(
    "modelyard benchmark --n 1000 --concurrency 16",
    "modelyard benchmark --data rows.csv --model Prices --json",
    "modelyard benchmark --data example --model Mood@champion",
)


@click.command("benchmark", epilog=EXAMPLES)
@click.option("--n", type=click.IntRange(1), default=100, show_default=True, help="Samples to send.")
@version_options
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Number of concurrent requests.",
)
@click.option(
    "--data",
    metavar="dummy|digits|example|FILE",
    help="Noise of a digit's shape, held-out digits, the version's example, or rows of a file, one a request; default: "
    "noise where the version takes digits, otherwise its example.",
)
@click.option("--seed", type=int, help="Seed of the samples.")
@JSON_OPTION
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
    concurrency: int,
    data: str | None,
    seed: int | None,
    as_json: bool,
    url: str | None,
    output: Path,
    plot: Path,
    params: dict[str, Any] | None,
    **selector: Unpack[SubmitOptions],
) -> None:
    """Send many samples to a controller, record them and plot their latencies."""
    from modelyard import AsyncClient, Client
    from modelyard.benchmark import Benchmark
    from modelyard.commands.benchmark_samples import benchmark_samples
    from modelyard.commands.benchmark_table import summary_document, write_summary

    url = controller_url(url)
    with Client(url) as client:
        client.ready()  # no controller: say so before a file is made
        samples = benchmark_samples(client, data, n, seed, selector)
    _append(output, [])  # a file that cannot be written should cost no run
    run = Benchmark(lambda: AsyncClient(url), samples, options=selector, params=params)
    started_s = time.perf_counter()
    try:
        _run(run, n, concurrency)
    finally:
        duration_s = time.perf_counter() - started_s
        _append(output, run.records)
    if as_json:
        write_json(summary_document(run.records, duration_s))
    else:
        write_summary(run.records, duration_s)
    _plot(run.records, output, plot, as_json)


def _run(run: Benchmark, n: int, concurrency: int) -> None:
    """Send all samples, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("predicting", total=n)
        asyncio.run(run.run(concurrency, lambda record: progress.advance(bar)))


def _append(output: Path, records: list[Record]) -> None:
    """Append records, and say so if the file that was there had to be moved."""
    from modelyard.records import append_records

    kept_aside = append_records(output, records)
    if kept_aside is not None:
        told = f"{output} was not a JSON list of records; it is kept as {kept_aside}"
        click.secho(told, fg="yellow", err=True)


def _plot(records: list[Record], output: Path, plot: Path, as_json: bool) -> None:
    from modelyard.plot import draw_latencies

    told = f"{len(records)} records appended to {output}"
    if find_spec("matplotlib") is None:
        click.echo(told, err=as_json)
        click.echo("no plot: it needs matplotlib: pip install 'modelyard-client[plots]'", err=True)
        return
    draw_latencies(records, plot)
    click.echo(f"{told}, latencies drawn in {plot}", err=as_json)
