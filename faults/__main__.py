"""Runs the faults one after the other and prints the table: `make faults`."""

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

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"


def main() -> int:
    """Run what the command line says; 1 where anything that had to hold did not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"rows, separated by commas: {', '.join(FAULTS)}")
    parser.add_argument("--short", action="store_true", help="a few seconds a row")
    parser.add_argument("--csv", type=Path, help="write every row there")
    parser.add_argument("--publish", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",") if name.strip()]
    names = names or [name for name in FAULTS if name != "soak"]  # half an hour: only where asked for
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    console = Console()
    done: list[Row] = []
    for row in run([FAULTS[name] for name in names], console, short=arguments.short):
        done.append(row)
        if arguments.publish:  # at once: a run takes a while, and what was measured stays measured
            publish([row])
    console.print(table.rich_table(done))
    if arguments.csv:
        table.write_csv(done, arguments.csv)
    return any(row.broken for row in done)


def run(faults: Sequence[Fault], console: Console, *, short: bool) -> Iterator[Row]:
    """Do the faults, those with equal pools on the same one, and say how each went."""
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
                        console.print(f"  [red]left out:[/red] {missing}", highlight=False)
                        continue
                    for text in (*row.notes, *(f"[red]broken:[/red] {each}" for each in row.broken)):
                        console.print("  " + text, highlight=False)
                    yield row


def publish(done: Sequence[Row]) -> None:
    """Replace these rows, and leave the others, of the table between the markers in docs/reliability.md."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    old, after = rest.split(END)
    about = f"Machine: {machine.describe()}; the harness and its load run on it, too."
    merged = table.markdown(done, f"{datetime.now(UTC):%Y-%m-%d}", old)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{about}\n\n{merged}{END}{after}")


assert rows  # importing it has registered them
if __name__ == "__main__":
    sys.exit(main())
