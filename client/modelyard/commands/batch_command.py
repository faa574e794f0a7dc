"""`modelyard batch`: predicts the rows of a file into another file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import click

from modelyard.commands.batch_progress import rows_progress
from modelyard.commands.console_output import JSON_OPTION, examples, number, waiting, write_json
from modelyard.commands.controller_option import URL_OPTION, controller_url
from modelyard.commands.exit_status import FAILED
from modelyard.commands.interrupts import INTERRUPTED
from modelyard.commands.version_options import version_options

if TYPE_CHECKING:
    from modelyard.batch.batch_run import BatchPlan
    from modelyard.batch.part_file import PartFile
    from modelyard.batch.sources import Source
    from modelyard.calls import SubmitOptions

ROWS, CONCURRENCY = 8000, 8
EXAMPLES = examples(
    "modelyard batch rows.csv --output predictions.csv --model Prices",
    "modelyard batch rows.parquet --output predictions.parquet --model Prices@champion",
    "modelyard batch photos/ --output classes.ndjson --model Photos --rows 8",
    "modelyard batch samples.npy --output scores.parquet --json",
)


@click.command("batch", epilog=EXAMPLES)
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write: .csv, .ndjson, .jsonl or .parquet.",
)
@version_options
@click.option(
    "--rows", type=click.IntRange(1), default=ROWS, show_default=True, help="Rows in a request, at most."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    default=CONCURRENCY,
    show_default=True,
    help="Number of concurrent requests.",
)
@click.option("--restart", is_flag=True, help="Begin anew, and replace the output.")
@JSON_OPTION
@URL_OPTION
def command(
    source: Path,
    output: Path,
    rows: int,
    concurrency: int,
    restart: bool,
    as_json: bool,
    url: str | None,
    params: dict[str, Any] | None,
    **selector: Unpack[SubmitOptions],
) -> None:
    """Predict every row of INPUT, and write one row for each, in order.

    INPUT is a file .csv, .ndjson, .jsonl, .parquet, .npy or .npz, or a folder or .zip of PNG and JPEG images. All rows
    go to the version that the first ones are routed to. After an interruption, the same command continues where it
    ended. Rows that are refused have no outputs; their places and reasons are in OUTPUT's name with .bad.ndjson.

    Exit status: 0 all rows were predicted, 1 some were not.
    """
    from modelyard.batch.batch_run import BatchPlan
    from modelyard.batch.file_run import part_path_of, write_output
    from modelyard.batch.part_file import PartFile
    from modelyard.batch.result_files import check_format
    from modelyard.batch.sources import open_source

    check_format(output)
    opened = open_source(source)
    part_path = part_path_of(output)
    if restart:
        part_path.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
    elif output.exists():
        raise click.UsageError(f"{output} exists; choose another --output, or replace it with --restart")
    asked = _fingerprint(source, selector, params)
    plan = BatchPlan(asked, selector, params, rows, concurrency)
    with PartFile(part_path, asked) as part:
        n_before, started_s = part.n_rows, time.perf_counter()
        try:
            with rows_progress(opened) as tell:
                asyncio.run(_run(controller_url(url), opened, part, plan, tell))
            duration_s = time.perf_counter() - started_s
            with waiting(f"writing {output}"):
                bad = write_output(opened, part, output)
        except KeyboardInterrupt:
            click.echo(f"modelyard: {_left(part)}", err=True)
            sys.exit(INTERRUPTED)
        except OSError as error:  # a full disk, mostly
            reason = f"{error.strerror or error}; {_left(part)}"
            raise OSError(error.errno, reason, error.filename or str(output)) from error
    _report(part, output, bad, n_before, duration_s, as_json)
    sys.exit(FAILED if bad else 0)


async def _run(
    url: str, source: Source, part: PartFile, plan: BatchPlan, tell: Callable[[int], object]
) -> None:
    from modelyard import AsyncClient
    from modelyard.batch.file_run import PATIENT, predict_rows

    async with AsyncClient(url) as client:
        await client.ready()  # no controller: say so at once
    async with AsyncClient(url, retry=PATIENT) as client:
        await predict_rows(client, source, part, plan, tell)


def _left(part: PartFile) -> str:
    return f"{part.n_rows:,} rows are finished; the same command continues"


def _fingerprint(source: Path, selector: SubmitOptions, params: dict[str, Any] | None) -> str:
    """The options that a later run must share to continue this one."""
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    options = {
        name: value for name, value in selector.items() if value or name != "endpoint"
    }  # it came later
    asked = json.dumps([str(source.resolve()), stats, options, params], sort_keys=True)
    return hashlib.sha256(asked.encode()).hexdigest()


def _report(
    part: PartFile, output: Path, bad: Path | None, n_before: int, duration_s: float, as_json: bool
) -> None:
    assert part.head or not part.n_rows
    rate = (part.n_rows - n_before) / max(duration_s, 0.001)
    if as_json:
        write_json(
            {
                "rows": part.n_rows,
                "predicted": part.n_rows - part.n_bad,
                "set_aside": part.n_bad,
                "rows_before": n_before,
                "seconds": round(duration_s, 3),
                "rows_per_s": round(rate, 1),
                "output": str(output),
                "bad_rows": str(bad) if bad else None,
            }
        )
        return
    aside = f"; {part.n_bad:,} were set aside, see {bad}" if bad else ""
    continued = f", {n_before:,} of them earlier" if n_before else ""
    click.echo(
        f"{part.n_rows:,} rows in {output}{continued}, {duration_s:.1f} s, {number(rate, 0)} per s{aside}"
    )
