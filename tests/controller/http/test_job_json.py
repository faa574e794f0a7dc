"""Jobs as JSON: written with their whole batch, a job says what it says when it is written alone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from app.ledger.ids import JobRef
from app.ledger.wire import CANCELLED, EXPIRED, Array, BatchOutcome, JobOutcome
from app.server_errors import WireError
from controller.http.documentation import schemas
from controller.http.job_json import BatchJson, job_json, predictions_json
from modelyard.schemas import Job, Status
from tests.pool_samples import head, outcome
from tests.published import problems

BATCH_ID = "batch"
TIMES = dict.fromkeys(("queue_wait_ms", "end_to_end_ms"))
FAILED = JobOutcome("failed", error_code="model_failed", error_detail='the model said "no"')
SCORES = np.random.default_rng(0).random((3, 10), np.float32)
ALIKE = [JobOutcome("succeeded", [n], row.tobytes()) for n, row in enumerate(SCORES)]


def named(table: Any) -> tuple[str, bytes]:
    """Scores as a worker writes those that are not float32."""
    return table.dtype.name, table.tobytes()


BATCHES = {
    "alike": ALIKE,
    "without scores": [JobOutcome("succeeded", [n]) for n in range(3)],
    "one fails": [ALIKE[0], FAILED, ALIKE[2]],
    "none succeeds": [FAILED, EXPIRED, CANCELLED],
    "all fail, with more than they should": [JobOutcome("failed", [1], SCORES[0].tobytes(), "a", "b")] * 2,
    "samples differ": [ALIKE[0], JobOutcome("succeeded", [4, 5], SCORES[1:].tobytes())],
    "two samples each": [JobOutcome("succeeded", [n, n + 1], SCORES[:2].tobytes()) for n in range(2)],
    "float64": [JobOutcome("succeeded", [1], named(np.array([[n, 1 / 3]]))) for n in range(3)],
    "as many bytes of two dtypes": [
        JobOutcome("succeeded", [1], named(np.array([[1, 2**53 + 1]], dtype))) for dtype in ("<f8", "<i8")
    ],
    "other widths": [JobOutcome("succeeded", [1], named(np.ones((1, n), "<f8"))) for n in (1, 3)],
    "named and not": [ALIKE[0], JobOutcome("succeeded", [1], named(np.array([[True, False]])))],
    "of two bytes": [JobOutcome("succeeded", [1], named(np.array([[1, 255]], np.uint8)))] * 2,
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
        name, data = own.scores if isinstance(own.scores, tuple) else ("float32", own.scores)
        expected = np.frombuffer(data, name).reshape(len(own.classes), -1)
        assert job.get("scores_dtype", "float32") == name
        if data:
            assert np.array_equal(np.array(scores, name), expected)
        else:
            assert scores == [None] * len(own.classes)


@pytest.mark.parametrize("jobs", BATCHES.values(), ids=list(BATCHES))
def test_outputs_are_what_mlflow_would_answer_unless_a_task_says_that_the_predictions_are(
    jobs: list[JobOutcome],
) -> None:
    declared = [msgspec.structs.replace(own, task="classification") for own in jobs]
    for job, same, own in zip(written(jobs)[0], written(declared)[0], jobs, strict=True):
        if own.status == "succeeded":
            outputs, dtype = job.pop("outputs"), job.pop("outputs_dtype", None)
            assert outputs == json.loads(predictions_json(own))
            assert dtype == (job.get("scores_dtype", "float32") if own.scores else None)
        assert {**job, **TIMES} == {**same, **TIMES}


@pytest.mark.parametrize(
    "arrays",
    [
        [np.array([n / 3, np.nan])[:, None] for n in range(3)],
        [np.arange(4).reshape(2, 2) + n for n in range(2)],
        [np.full((1, 2, 3), n / 3, np.float16) for n in range(2)],
        [np.array([True, False])] * 2,
        [np.ones((1, 2)), np.ones((2, 1))],
        [np.ones((1, 2)), np.ones((1, 2), np.float32)],
        [np.ones((1, 0))] * 2,
    ],
    ids=["column", "int64", "float16", "one dimension", "other shapes", "other dtypes", "empty"],
)
def test_arrays_read_the_same_alone_and_with_their_batch(arrays: list[Any]) -> None:
    outputs = [Array(each.dtype.name, each.shape, each.tobytes()) for each in arrays]
    read, _ = written([JobOutcome("succeeded", outputs=each) for each in outputs])
    for job, array in zip(read, arrays, strict=True):
        assert job["outputs_dtype"] == array.dtype.name
        assert np.array_equal(np.array(job["outputs"], array.dtype), array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("jobs", BATCHES.values(), ids=list(BATCHES))
def test_a_job_is_as_the_openapi_document_describes_it_and_the_client_reads_it(
    jobs: list[JobOutcome],
) -> None:
    for job, own in zip(written(jobs)[0], jobs, strict=True):
        assert not problems("Job", job, schemas())
        read = msgspec.convert(job, Job)
        assert (read.done, read.status, len(read.predictions)) == (
            True,
            own.status,
            len(job.get("predictions", ())),
        )


@pytest.mark.parametrize("status", ["queued", "running", "expired", "cancelled"])
def test_a_job_without_an_outcome_is_as_the_openapi_document_describes_it(status: Status) -> None:
    for each in (head(1), msgspec.structs.replace(head(1), val_accuracy=None, resent_from="old.0")):
        job = json.loads(job_json(JobRef(BATCH_ID, 0), each, status, None, "/prefix"))
        assert not problems("Job", job, schemas())
        assert msgspec.convert(job, Job).result_url == f"/prefix/results/{BATCH_ID}.0"


def test_times_are_in_ms_and_never_negative() -> None:
    [job], result = written([ALIKE[0]])
    assert 0 <= job["queue_wait_ms"] <= job["end_to_end_ms"]
    assert job["inference_ms"] == result.inference_ms


@pytest.mark.parametrize(
    "jobs",
    [
        [JobOutcome("succeeded", [1], b"12345")] * 2,
        [JobOutcome("succeeded", [1, 2], b"1234")],
        [JobOutcome("succeeded", [1], ("float64", b"1234"))],
        [JobOutcome("succeeded", [1], ("object", b"12345678"))] * 2,
        [JobOutcome("succeeded", [1], ("", b"12345678"))],
    ],
)
def test_scores_that_are_no_table_cannot_be_read(jobs: list[JobOutcome]) -> None:
    with pytest.raises(WireError, match="scores cannot be read"):
        BatchJson(BATCH_ID, head(len(jobs))).job(0, "succeeded", outcome(jobs=jobs))


SPELLINGS = {
    "float64": ([[123456789.25, 1 / 3]], "[123456789.25,0.3333333333333333]"),
    "float16": ([[0.1, -65504]], "[0.0999755859375,-65504.0]"),
    "int64": ([[2**63 - 1, -(2**63)]], "[9223372036854775807,-9223372036854775808]"),
    "uint64": ([[2**64 - 1, 16777217]], "[18446744073709551615,16777217]"),
    "int8": ([[-128, 127]], "[-128,127]"),
    "bool": ([[True, False]], "[1,0]"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_scores_of_every_dtype_are_spelled_exactly(name: str) -> None:
    values, text = SPELLINGS[name]
    for n_jobs in (1, 2):
        jobs = [JobOutcome("succeeded", [0], named(np.array(values, name)))] * n_jobs
        written = BatchJson(BATCH_ID, head(n_jobs)).job(0, "succeeded", outcome(jobs=jobs)).decode()
        assert f'"predictions":[{{"class":0,"scores":{text}}}],"scores_dtype":"{name}"' in written
