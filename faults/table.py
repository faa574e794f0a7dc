"""The register of faults, and the table of what became of the jobs under each."""

from __future__ import annotations

import csv
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from faults.fault_pool import PoolPlan

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
SHORT_HEADINGS = ("fault", "jobs", "good", "failed", "other", "lost", "twice", "refused", "median", "max, s")


@dataclass(frozen=True)
class Fault:
    """A row to be.

    Attributes:
        name: What ONLY selects it by.
        title: What is done, in words.
        plan: The pool that it is done to; rows with equal plans share one.
        in_tests: Whether its short form is among the tests.
    """

    name: str
    title: str
    plan: PoolPlan
    inject: Inject
    in_tests: bool


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


def fault(
    name: str,
    title: str,
    plan: PoolPlan = PoolPlan(),  # noqa: B008  (frozen)
    *,
    in_tests: bool = True,
) -> Callable[[Inject], Inject]:
    """Register a row: `@fault("worker-killed", "SIGKILL of a worker in mid-batch")`."""

    def register(inject: Inject) -> Inject:
        assert name not in FAULTS, f"two rows are called {name}"
        FAULTS[name] = Fault(name, title, plan, inject, in_tests)
        return inject

    return register


def by_plan(faults: Iterable[Fault]) -> list[Fault]:
    """The faults in their order, but those with equal plans one after the other."""
    groups: dict[PoolPlan, list[Fault]] = {}
    for each in faults:
        groups.setdefault(each.plan, []).append(each)
    return [each for group in groups.values() for each in group]


def rich_table(rows: Sequence[Row]) -> Table:
    """For the terminal, of 80 columns."""
    table = Table(*SHORT_HEADINGS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for row in rows:
        table.add_row(row.name, *row.cells()[1:], style="red" if row.broken else "")
    return table


def markdown(rows: Sequence[Row], run_on: str, old: str = "") -> str:
    """For `docs/reliability.md`.

    Args:
        run_on: Date of these rows.
        old: The same, of earlier runs: what it says of other rows is kept.
    """
    titles = [each.title for each in FAULTS.values()]
    lines = {title: line for line in old.splitlines() for title in titles if line.startswith(f"| {title} |")}
    notes = {title: line for line in old.splitlines() for title in titles if line.startswith(f"- {title}: ")}
    for row in rows:
        lines[row.title] = f"| {' | '.join([*row.cells(), run_on])} |"
        notes[row.title] = f"- {row.title}: {'; '.join(row.notes)}" if row.notes else ""
    head = [f"| {' | '.join([*HEADINGS, 'run on'])} |", f"|{' --- |' * (len(HEADINGS) + 1)}"]
    body = [lines[title] for title in titles if title in lines]
    return "\n".join([*head, *body, "", *(notes[title] for title in titles if notes.get(title))]) + "\n"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Every row with all that it measured."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *HEADINGS, "took, s", "recoveries, s", "broken", "notes"])
        for row in rows:
            recoveries = " ".join(f"{each:.3f}" for each in row.recoveries_s)
            extra = [f"{row.took_s:.1f}", recoveries, "; ".join(row.broken), "; ".join(row.notes)]
            writer.writerow([row.name, *row.cells(), *extra])
