"""Inject faults into a pool under load and print the table of results: `make faults`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from rich.console import Console

from benchmarks import machine
from faults import fault_registry, rows, table, trial
from faults.fault_pool import open_pool
from faults.table import FAULTS, Fault, Row

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability-results.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def main() -> int:
    """Run the faults that the command line names; return 1 if a requirement did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"faults to run, separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--short", action="store_true", help="run each fault for a few seconds only")
    parser.add_argument("--csv", type=Path, help="also write all results to this file")
    parser.add_argument(
        "--publish", action="store_true", help="write the results into docs/reliability-results.md"
    )
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    names = names or [name for name in FAULTS if name != "soak"]  # takes half an hour: only by name
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        parser.error(f"unknown fault: {', '.join(unknown)}; choose from {', '.join(FAULTS)}")
    console = Console()
    done: list[Row] = []
    for row in run([FAULTS[name] for name in names], console, short=arguments.short):
        done.append(row)
        if arguments.publish:  # after each row: an interrupted run keeps its results
            publish([row])
    console.print(table.rich_table(done))
    if arguments.csv:
        table.write_csv(done, arguments.csv)
    return any(row.broken for row in done)


def run(faults: Sequence[Fault], console: Console, *, short: bool) -> Iterator[Row]:
    """Run the faults, grouped by pool plan, and print how each went."""
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        fault_registry.lay_out(folder)
        for plan, group in groupby(table.by_plan(faults), key=lambda each: each.plan):
            with open_pool(plan, folder, short=short) as pool:
                for each in group:
                    console.print(f"{each.name}: {each.title} …", highlight=False)
                    try:
                        row = asyncio.run(trial.run(each, pool, short=short))
                    except trial.ToolMissingError as missing:
                        console.print(f"  [red]skipped:[/red] {missing}", highlight=False)
                        continue
                    for text in (*row.notes, *(f"[red]broken:[/red] {each}" for each in row.broken)):
                        console.print("  " + text, highlight=False)
                    yield row


def publish(done: Sequence[Row]) -> None:
    """Replace these rows of the table in docs/reliability-results.md, and keep the others."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    old, after = rest.split(END)
    about = f"Machine: {machine.describe()}. The load generator ran there too."
    merged = table.markdown(done, f"{datetime.now(UTC):%Y-%m-%d}", old)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{about}\n\n{merged}{END}{after}")


assert rows  # its import registers the faults
if __name__ == "__main__":
    sys.exit(main())
