"""The register of faults, and the table of their results."""

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
    "unexpected",
    "lost",
    "written twice",
    "refused",
    "recovery median, s",
    "recovery max, s",
)
SHORT_HEADINGS = ("fault", "jobs", "good", "failed", "other", "lost", "twice", "refused", "median", "max, s")


@dataclass(frozen=True)
class Fault:
    """A fault and how to run it.

    Attributes:
        name: Its name in `make faults ONLY=name`.
        title: What is done to the pool, for the table.
        plan: The pool to run against; rows with equal plans share one.
        in_tests: Whether `make test` runs its short form.
    """

    name: str
    title: str
    plan: PoolPlan
    inject: Inject
    in_tests: bool


@dataclass
class Row:
    """The result of one fault.

    Attributes:
        refused: Posts that were refused or whose connection failed; no caller was told that its job was accepted.
        recoveries_s: Seconds until the affected part worked again, one per repetition of the fault.
        broken: Requirements that did not hold.
        notes: Further measurements.
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
        """The cells in the order of `HEADINGS`."""
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
    """Register a row: `@fault("worker-killed", "SIGKILL of a busy worker")`."""

    def register(inject: Inject) -> Inject:
        assert name not in FAULTS, f"two rows are called {name}"
        FAULTS[name] = Fault(name, title, plan, inject, in_tests)
        return inject

    return register


def by_plan(faults: Iterable[Fault]) -> list[Fault]:
    """The faults in order, grouped by pool plan."""
    groups: dict[PoolPlan, list[Fault]] = {}
    for each in faults:
        groups.setdefault(each.plan, []).append(each)
    return [each for group in groups.values() for each in group]


def rich_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal of 80 columns."""
    table = Table(*SHORT_HEADINGS, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for row in rows:
        table.add_row(row.name, *row.cells()[1:], style="red" if row.broken else "")
    return table


def markdown(rows: Sequence[Row], run_on: str, old: str = "") -> str:
    """The table and notes for `docs/reliability-results.md`.

    Args:
        run_on: Date of these rows.
        old: The section of earlier runs; its other rows are kept.
    """
    lines = {name: line for line in old.splitlines() for name in FAULTS if line.startswith(f"| `{name}` |")}
    notes = {name: line for line in old.splitlines() for name in FAULTS if line.startswith(f"- `{name}`: ")}
    for row in rows:
        lines[row.name] = f"| `{row.name}` | {' | '.join([*row.cells(), run_on])} |"
        notes[row.name] = f"- `{row.name}`: {'; '.join(row.notes)}" if row.notes else ""
    headings = ["name", *HEADINGS, "date"]
    head = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    body = [lines[name] for name in FAULTS if name in lines]
    return "\n".join([*head, *body, "", *(notes[name] for name in FAULTS if notes.get(name))]) + "\n"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write every row with all its measurements."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *HEADINGS, "took, s", "recoveries, s", "broken", "notes"])
        for row in rows:
            recoveries = " ".join(f"{each:.3f}" for each in row.recoveries_s)
            extra = [f"{row.took_s:.1f}", recoveries, "; ".join(row.broken), "; ".join(row.notes)]
            writer.writerow([row.name, *row.cells(), *extra])
