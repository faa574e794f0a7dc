"""The register of faults, and the table of what became of the jobs under each."""

from __future__ import annotations

import csv
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table

from faults.pool import PoolPlan

if TYPE_CHECKING:
    from faults.trial import Trial

Inject = Callable[["Trial"], Awaitable[None]]
FAULTS: dict[str, Fault] = {}
HEADINGS = (
    "fault",
    "accepted",
    "succeeded",
    "failed as expected",
    "otherwise",
    "lost",
    "outcome twice",
    "refused",
    "recovery median, s",
    "recovery max, s",
)


@dataclass(frozen=True)
class Fault:
    """A row to be.

    Attributes:
        name: What ONLY selects it by.
        title: What is done, in words.
        plan: The pool that it is done to; rows with equal plans share one.
    """

    name: str
    title: str
    plan: PoolPlan
    inject: Inject


@dataclass
class Row:
    """What one fault came to.

    Attributes:
        refused: Posts that were refused or whose connection failed; none of them was accepted.
        recoveries_s: Each time that the fault was done: seconds until what it hit worked again.
        broken: What had to hold and did not.
        notes: What the row measured besides.
    """

    name: str
    title: str
    accepted: int = 0
    succeeded: int = 0
    failed_as_expected: int = 0
    otherwise: int = 0
    lost: int = 0
    duplicated: int = 0
    refused: int = 0
    took_s: float = 0.0
    recoveries_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """In the order of `HEADINGS`."""
        jobs = [self.accepted, self.succeeded, self.failed_as_expected, self.otherwise]
        jobs += [self.lost, self.duplicated, self.refused]
        times = self.recoveries_s
        recovery = [f"{median(times):.2f}", f"{max(times):.2f}"] if times else ["-", "-"]
        return [self.title, *map(str, jobs), *recovery]


def fault(name: str, title: str, plan: PoolPlan = PoolPlan()) -> Callable[[Inject], Inject]:  # noqa: B008  (frozen)
    """Register a row: `@fault("worker-killed", "SIGKILL of a worker in mid-batch")`."""

    def register(inject: Inject) -> Inject:
        assert name not in FAULTS, f"two rows are called {name}"
        FAULTS[name] = Fault(name, title, plan, inject)
        return inject

    return register


def rich_table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    table = Table(*HEADINGS)
    for row in rows:
        table.add_row(row.name, *row.cells()[1:], style="red" if row.broken else "")
    return table


def markdown(rows: Sequence[Row]) -> str:
    """For `docs/reliability.md`."""
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{' --- |' * len(HEADINGS)}"]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    notes = [f"- {row.title}: {'; '.join(row.notes)}" for row in rows if row.notes]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Every row with all that it measured."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *HEADINGS, "took, s", "recoveries, s", "broken", "notes"])
        for row in rows:
            recoveries = " ".join(f"{each:.3f}" for each in row.recoveries_s)
            extra = [f"{row.took_s:.1f}", recoveries, "; ".join(row.broken), "; ".join(row.notes)]
            writer.writerow([row.name, *row.cells(), *extra])
