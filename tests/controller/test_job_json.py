"""Jobs as JSON: written with their whole batch, a job says what it says when it is written alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from app.errors import WireError
from app.ids import JobRef
from app.wire import CANCELLED, EXPIRED, BatchOutcome, JobOutcome
from controller.job_json import BatchJson, job_json
from tests.pool_samples import head, outcome

BATCH_ID = "batch"
FAILED = JobOutcome("failed", error_code="model_failed", error_detail='the model said "no"')
SCORES = np.random.default_rng(0).random((3, 10), np.float32)
ALIKE = [JobOutcome("succeeded", [n], row.tobytes()) for n, row in enumerate(SCORES)]
BATCHES = {
    "alike": ALIKE,
    "without scores": [JobOutcome("succeeded", [n]) for n in range(3)],
    "one fails": [ALIKE[0], FAILED, ALIKE[2]],
    "none succeeds": [FAILED, EXPIRED, CANCELLED],
    "all fail, with more than they should": [JobOutcome("failed", [1], SCORES[0].tobytes(), "a", "b")] * 2,
    "samples differ": [ALIKE[0], JobOutcome("succeeded", [4, 5], SCORES[1:].tobytes())],
    "two samples each": [JobOutcome("succeeded", [n, n + 1], SCORES[:2].tobytes()) for n in range(2)],
    "values": [JobOutcome("succeeded", [value], b"") for value in (0.1, float("nan"), -1e300)],
}


def written(jobs: list[JobOutcome]) -> tuple[list[Any], BatchOutcome]:
    """Each job of a batch, read back."""
    batch_head, result = head(len(jobs)), outcome(jobs=jobs)
    together = BatchJson(BATCH_ID, batch_head)
    read = []
    for index, own in enumerate(jobs):
        text = together.job(index, own.status, result)
        assert text == job_json(JobRef(BATCH_ID, index), batch_head, own.status, result)
        read.append(json.loads(text))
    return read, result


@pytest.mark.parametrize("jobs", BATCHES.values(), ids=list(BATCHES))
def test_a_job_reads_the_same_alone_and_with_its_batch(jobs: list[JobOutcome]) -> None:
    for index, (job, own) in enumerate(zip(written(jobs)[0], jobs, strict=True)):
        assert (job["id"], job["status"]) == (f"{BATCH_ID}.{index}", own.status)
        if own.status != "succeeded":
            assert job["error"] == {"code": own.error_code, "detail": own.error_detail}
            continue
        assert [each["class"] for each in job["predictions"]] == [
            None if value != value else value for value in own.classes
        ]
        scores = [each["scores"] for each in job["predictions"]]
        expected = np.frombuffer(own.scores, "<f4").reshape(len(own.classes), -1)
        if own.scores:
            assert np.array_equal(np.array(scores, np.float32), expected)
        else:
            assert scores == [None] * len(own.classes)


def test_times_are_in_ms_and_never_negative() -> None:
    [job], result = written([ALIKE[0]])
    assert 0 <= job["queue_wait_ms"] <= job["end_to_end_ms"]
    assert job["inference_ms"] == result.inference_ms


@pytest.mark.parametrize(
    "jobs", [[JobOutcome("succeeded", [1], b"12345")] * 2, [JobOutcome("succeeded", [1, 2], b"1234")]]
)
def test_scores_that_are_no_table_cannot_be_read(jobs: list[JobOutcome]) -> None:
    with pytest.raises(WireError, match="scores cannot be read"):
        BatchJson(BATCH_ID, head(len(jobs))).job(0, "succeeded", outcome(jobs=jobs))
