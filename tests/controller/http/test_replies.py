"""Which answer a caller gets that prefers a job and reads the outcome later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.ledger.wire import BatchOutcome
from controller.http.replies import gets_job
from tests.pool_samples import outcome


@pytest.mark.parametrize(
    ("wait_s", "result", "gets"),
    [
        (0.0, None, True),
        (0.0, outcome(1), True),  # it came together with the acceptance
        (5.0, None, True),
        (5.0, outcome(1), False),
    ],
)
def test_a_caller_that_prefers_a_job_and_does_not_wait_gets_it_however_fast_the_outcome_is(
    wait_s: float, result: BatchOutcome | None, gets: bool
) -> None:
    job: Any = SimpleNamespace(batch=SimpleNamespace(outcome=result), expired=False)
    assert gets_job(job, wait_s) == gets
