"""What cannot be read is counted each time and logged once."""

from __future__ import annotations

import pytest

from app import unreadable
from app.unreadable import Unreadable


def test_each_is_counted_and_the_same_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen = Unreadable()
    for _ in range(5):
        seen.note("batch", "one", "damaged")
    seen.note("batch", "two", "damaged")
    seen.note("notice", "one", "x" * 10_000)
    assert (seen.counts["batch"], seen.counts["notice"], seen.total) == (6, 1, 7)
    assert len(caplog.records) == 3
    assert len(caplog.text) < 2000


def test_it_is_logged_again_after_a_while_and_remembers_only_so_many(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unreadable, "QUIET_S", 0)
    seen = Unreadable()
    for i in range(2 * unreadable.REMEMBERED):
        seen.note("message", str(i), "garbage")
    seen.note("message", "0", "garbage")
    assert len(caplog.records) == 2 * unreadable.REMEMBERED + 1
    assert len(seen._logged_at_s) == unreadable.REMEMBERED
