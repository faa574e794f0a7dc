"""Jobs as callers see them: JSON, in which what the jobs of a batch have in common is written once."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from app import ids
from app.errors import WireError
from app.ids import JobRef
from app.wire import EXPIRED, BatchHead, BatchOutcome, JobOutcome, Status

SCORE = np.dtype("<f4")


def result_url(job_id: str) -> str:
    """Where a job is read."""
    return f"/results/{job_id}"


def job_json(ref: JobRef, head: BatchHead, status: Status, outcome: BatchOutcome | None) -> bytes:
    """A job as JSON: its receipt, and its outcome where it has one.

    Raises:
        WireError: Its scores cannot be read.
    """
    return BatchJson(ref.batch_id, head).job(ref.index, status, outcome)


class BatchJson:
    """Writes the jobs of one batch."""

    __slots__ = ("_batch_id", "_common", "_head")

    def __init__(self, batch_id: str, head: BatchHead) -> None:
        self._batch_id = batch_id
        self._head = head
        self._common: dict[tuple[str, bool, bool], bytes] = {}

    def job(self, index: int, status: Status, outcome: BatchOutcome | None) -> bytes:
        """The job at `index`.

        Args:
            status: Its own.
            outcome: The batch's, where it has one; always the same.

        Raises:
            WireError: Its scores cannot be read.
        """
        entry = self._head.jobs[index]
        key = (entry.policy, entry.forced, outcome is not None)
        common = self._common.get(key) or self._write_common(key, outcome)
        job_id = ids.job_id(self._batch_id, index)
        text = f'{{"id":"{job_id}","status":"{status}","result_url":"{result_url(job_id)}",'.encode() + common
        if outcome:
            own = _own(entry.received_at_ms, outcome, outcome.jobs[index])
        elif status == "expired":
            own = {"error": _error(EXPIRED)}
        else:
            return text + b"}"
        return text + b"," + orjson.dumps(own, option=orjson.OPT_SERIALIZE_NUMPY)[1:]

    def _write_common(self, key: tuple[str, bool, bool], outcome: BatchOutcome | None) -> bytes:
        policy, forced, _ = key
        head = self._head
        common: dict[str, Any] = {
            "worker": head.worker,
            "model_name": head.model_name,
            "model_version": head.model_version,
            "val_accuracy": head.val_accuracy,
            "policy": policy,
            "forced": forced,
        }
        if head.resent_from:
            common["resent_from"] = head.resent_from
        if outcome:
            common["worker_id"] = outcome.worker_id or None
            common["batch_samples"] = outcome.n_samples
            common["inference_ms"] = outcome.inference_ms
        written = self._common[key] = orjson.dumps(common)[1:-1]
        return written


def _own(received_at_ms: float, outcome: BatchOutcome, own: JobOutcome) -> dict[str, Any]:
    """What an outcome says of one job alone."""
    timings: dict[str, Any] = {
        "queue_wait_ms": round(max(0.0, outcome.started_at_ms - received_at_ms), 3),
        "end_to_end_ms": round(max(0.0, outcome.finished_at_ms - received_at_ms), 3),
    }
    if own.status == "succeeded":
        timings["predictions"] = _predictions(own)
    else:
        timings["error"] = _error(own)
    return timings


def _error(own: JobOutcome) -> dict[str, str]:
    return {"code": own.error_code, "detail": own.error_detail}


def _predictions(own: JobOutcome) -> list[dict[str, Any]]:
    if not own.scores:
        return [{"class": value, "scores": None} for value in own.classes]
    try:
        scores = np.frombuffer(own.scores, SCORE).reshape(len(own.classes), -1)
    except ValueError as error:
        raise WireError(f"the outcome's scores cannot be read: {error}") from None
    return [{"class": value, "scores": row} for value, row in zip(own.classes, scores, strict=True)]
