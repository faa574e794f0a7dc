"""Group commit as a table: what waits, is out and costs, and which batches are sent or how long all are held."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.batching import (
    ENOUGH_UNAWAITED,
    FEW_JOBS,
    MANY_JOBS,
    Limits,
    Load,
    Plan,
    is_full,
    plan,
)

LIMITS = Limits(max_jobs=256, max_samples=1024, hold_ms=20.0, hold_behind_ms=200.0, ahead=1)
FAST_MS, SLOW_MS = 5.0, 100.0  # of a batch
QUICK, USUAL = {"pass_ms": 0.01}, {"pass_ms": 1.0}
ONE_OUT, TWO_OUT = {"sent_batches": 1, "sent_jobs": 1}, {"sent_batches": 2, "sent_jobs": 2}
SUBMISSIONS = {"unsent_jobs": ENOUGH_UNAWAITED, "unawaited_jobs": ENOUGH_UNAWAITED}


def load(unsent_jobs: int = 1, batch_ms: float = FAST_MS, **fields: Any) -> Load:
    """By default one job of one sample waits, and nothing is out."""
    known: dict[str, Any] = {
        "unsent_samples": unsent_jobs,
        "unawaited_jobs": 0,
        "sent_batches": 0,
        "sent_jobs": 0,
        "other_jobs": 0,
        "workers": 1,
        "pass_ms": inf,
        "usual_jobs": 1.0,
    }
    return Load(unsent_jobs=unsent_jobs, batch_ms=lambda _: batch_ms, **{**known, **fields})


def decided(fields: dict[str, Any], *, is_due: bool = False, samples: list[int] | None = None) -> Plan:
    made = load(**fields)
    each = [1] * made.unsent_jobs if samples is None else samples
    return plan(made, LIMITS, each, is_due=is_due)


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({}, [1]),
        (ONE_OUT, [1]),
        ({**ONE_OUT, "unsent_jobs": 63}, [63]),
        ({"unsent_jobs": 130}, [65, 65]),
        ({**ONE_OUT, "unsent_jobs": 130}, [65, 65]),
        ({"unsent_jobs": 130, **QUICK}, [130]),
        ({"unsent_jobs": 700}, [256, 256, 188]),
        ({**TWO_OUT, "unsent_jobs": 8, "workers": 2, "batch_ms": SLOW_MS}, [4, 4]),
        ({"unsent_jobs": 8, "workers": 4, "batch_ms": SLOW_MS}, [2, 2, 2, 2]),
        ({"unsent_jobs": 8, "workers": 4}, [8]),
        ({**TWO_OUT, **SUBMISSIONS, **QUICK}, [ENOUGH_UNAWAITED]),
    ],
    ids=[
        "an idle queue",
        "one out, and one may be ahead",
        "not many: one batch",
        "many: two overlap",
        "many behind one: the same",
        "many of a quick model: no batch is ahead",
        "more than a batch holds",
        "a slow model: one batch is out for each worker, and one is ahead",
        "a slow model: the others share what would take one of them long",
        "a fast model: its workers would only get smaller batches",
        "submissions of a worker that keeps up",
    ],
)
def test_jobs_are_sent_at_once(fields: dict[str, Any], sizes: list[int]) -> None:
    assert decided(fields).sizes == sizes


@pytest.mark.parametrize(
    ("fields", "hold_ms"),
    [
        (TWO_OUT, 20.0),
        ({**TWO_OUT, "unsent_jobs": 4 * FEW_JOBS, "other_jobs": 100, "batch_ms": 1.0}, 20.0),
        ({**TWO_OUT, "other_jobs": 100, "batch_ms": FAST_MS}, 125.0),
        ({**TWO_OUT, "other_jobs": 10_000, "batch_ms": FAST_MS}, 200.0),
        ({"sent_batches": 1, "sent_jobs": FEW_JOBS, **QUICK}, 20.0),
        ({**TWO_OUT, "workers": 4}, 20.0),
        ({**TWO_OUT, "unsent_jobs": ENOUGH_UNAWAITED, **QUICK}, 20.0),
        ({**TWO_OUT, **SUBMISSIONS, **USUAL}, 20.0),
        ({**TWO_OUT, **SUBMISSIONS, **QUICK, "other_jobs": 10_000}, 200.0),
    ],
    ids=[
        "as many are out as may be",
        "a short backlog",
        "behind a backlog, a quarter of the expected wait",
        "but not for ever",
        "a quick model with jobs in flight has no batch ahead",
        "workers of a fast model share one place",
        "the outcomes are waited for",
        "submissions of a model that is not quick",
        "submissions behind a long backlog",
    ],
)
def test_jobs_are_held(fields: dict[str, Any], hold_ms: float) -> None:
    found = decided(fields)
    assert found.sizes == []
    assert found.hold_ms == pytest.approx(hold_ms, rel=0.05)
    assert sum(decided(fields, is_due=True).sizes) == load(**fields).unsent_jobs, "until their time is over"


def test_a_quick_model_with_few_jobs_out_has_a_batch_ahead() -> None:
    assert decided({"sent_batches": 1, "sent_jobs": FEW_JOBS - 1, **QUICK}).sizes == [1]


def test_full_batches_are_sent_whatever_is_out_and_the_rest_is_held() -> None:
    found = decided({**TWO_OUT, **QUICK, "unsent_jobs": 2 * 256 + 7})
    assert found.sizes == [256, 256]
    assert found.hold_ms >= LIMITS.hold_ms


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [([600, 600, 600], [1, 1, 1]), ([500, 524, 1], [2, 1]), ([5000], [1]), ([1, 5000, 1], [1, 1, 1])],
)
def test_no_batch_has_too_many_samples_unless_one_job_has(samples: list[int], sizes: list[int]) -> None:
    fields = {**TWO_OUT, "unsent_jobs": len(samples), "unsent_samples": sum(samples)}
    assert decided(fields, samples=samples).sizes == sizes


def test_a_batch_is_full_by_its_jobs_or_by_its_samples() -> None:
    assert [is_full(*each, LIMITS) for each in ((255, 1023), (256, 256), (1, 1024))] == [False, True, True]


@given(
    st.lists(st.integers(1, 1500), min_size=1, max_size=600),
    st.integers(0, 3),
    st.integers(0, 600),
    st.integers(1, 8),
    st.sampled_from([0.01, 1.0, inf]),
    st.sampled_from([FAST_MS, SLOW_MS]),
    st.booleans(),
)
def test_whatever_waits_no_job_is_left_out_and_no_limit_passed(
    samples: list[int],
    sent_batches: int,
    jobs_each: int,
    workers: int,
    pass_ms: float,
    batch_ms: float,
    is_due: bool,
) -> None:
    fields: dict[str, Any] = {
        "unsent_jobs": len(samples),
        "unsent_samples": sum(samples),
        "sent_batches": sent_batches,
        "sent_jobs": sent_batches * jobs_each,
        "workers": workers,
        "pass_ms": pass_ms,
        "batch_ms": batch_ms,
    }
    found = decided(fields, samples=samples, is_due=is_due)
    rest = list(samples)
    for size in found.sizes:
        batch, rest = rest[:size], rest[size:]
        assert 0 < len(batch) == size <= LIMITS.max_jobs
        assert len(batch) == 1 or sum(batch) <= LIMITS.max_samples
    if is_due or sent_batches == 0:
        assert not rest
    if rest:
        assert LIMITS.hold_ms <= found.hold_ms <= LIMITS.hold_behind_ms
        assert not is_full(len(rest), sum(rest), LIMITS)


def test_many_begin_where_two_batches_do() -> None:
    assert len(decided({"unsent_jobs": MANY_JOBS}).sizes) == 2
    assert len(decided({"unsent_jobs": MANY_JOBS - 1}).sizes) == 1
