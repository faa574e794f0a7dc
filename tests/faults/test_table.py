"""The table of `docs/reliability-results.md`: a new run replaces its own rows and keeps the others."""

from __future__ import annotations

import faults.rows  # noqa: F401  (importing it registers the rows)
from faults.table import FAULTS, Row, markdown


def test_rows_of_an_earlier_run_stay_until_they_are_run_again() -> None:
    first, second = (Row(each.name, each.title) for each in list(FAULTS.values())[:2])
    first.accepted, first.notes, first.recoveries_s = 7, ["a note"], [1.0, 3.0]
    both = markdown([second], "2026-01-02", markdown([first], "2026-01-01"))
    assert f"| {first.title} | 7 | 0 | 0 | 0 | 0 | 0 | 0 | 2.00 | 3.00 | 2026-01-01 |" in both
    assert f"| {second.title} | 0 |" in both
    assert f"- `{first.name}`: a note" in both
    first.accepted, first.notes = 8, []
    again = markdown([first], "2026-01-03", both)
    assert again.count(f"| `{first.name}` |") == 1
    assert "| 8 |" in again
    assert "a note" not in again
