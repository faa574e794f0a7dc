"""Which answer a caller gets that prefers a job and reads the outcome later."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from app.ledger.wire import BatchOutcome
from controller.http.waiting_post import WaitingPost
from tests.pool_samples import outcome


@pytest.mark.parametrize(
    ("is_async", "wait_s", "result", "gets_job"),
    [
        (True, 0.0, None, True),
        (True, 0.0, outcome(1), True),  # it came together with the acceptance
        (True, 5.0, None, True),
        (True, 5.0, outcome(1), False),
        (False, 5.0, None, False),
        (False, 5.0, outcome(1), False),
    ],
)
def test_a_caller_that_prefers_a_job_and_does_not_wait_gets_it_however_fast_the_outcome_is(
    is_async: bool, wait_s: float, result: BatchOutcome | None, gets_job: bool
) -> None:
    request: Any = SimpleNamespace(asked=SimpleNamespace(wait_s=wait_s))
    job: Any = SimpleNamespace(batch=SimpleNamespace(outcome=result), expired=False)
    assert WaitingPost(request, b"", is_async).gets_job(job) == gets_job
