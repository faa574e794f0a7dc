"""What cannot be read is counted each time and logged once."""

from __future__ import annotations

import pytest

from app.unreadable import REMEMBERED, Unreadable


def test_each_is_counted_and_the_same_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    seen = Unreadable()
    for _ in range(5):
        seen.note("batch", "one", "damaged")
    seen.note("batch", "two", "damaged")
    seen.note("notice", "one", "x" * 10_000)
    assert (seen.counts["batch"], seen.counts["notice"], seen.total) == (6, 1, 7)
    assert len(caplog.records) == 3
    assert len(caplog.text) < 2000


def test_it_is_logged_again_once_many_others_have_come(caplog: pytest.LogCaptureFixture) -> None:
    seen = Unreadable()
    for i in range(REMEMBERED + 1):
        seen.note("message", str(i), "garbage")
    seen.note("message", "1", "garbage")  # is remembered still
    assert len(caplog.records) == REMEMBERED + 1
    seen.note("message", "0", "garbage")
    assert len(caplog.records) == REMEMBERED + 2
