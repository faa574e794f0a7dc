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
    return BatchJson(ref.batch_id, head, alone=True).job(ref.index, status, outcome)


class BatchJson:
    """Writes the jobs of one batch.

    Args:
        alone: Whether no more than one of them is asked for.
    """

    __slots__ = ("_batch_id", "_common", "_head", "_rows")

    def __init__(self, batch_id: str, head: BatchHead, alone: bool = False) -> None:
        self._batch_id = batch_id
        self._head = head
        self._common: dict[tuple[str, bool, bool], str] = {}
        self._rows: list[str] | None = [] if alone else None

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
        text = f'{{"id":"{job_id}","status":"{status}","result_url":"{result_url(job_id)}",{common}'
        if outcome:
            text += self._own(index, entry.received_at_ms, outcome)
        elif status == "expired":
            text += f',"error":{_error(EXPIRED)}'
        return f"{text}}}".encode()

    def _write_common(self, key: tuple[str, bool, bool], outcome: BatchOutcome | None) -> str:
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
        written = self._common[key] = _json(common)[1:-1]
        return written

    def _own(self, index: int, received_at_ms: float, outcome: BatchOutcome) -> str:
        """What an outcome says of one job alone."""
        own = outcome.jobs[index]
        queue_wait_ms = round(max(0.0, outcome.started_at_ms - received_at_ms), 3)
        end_to_end_ms = round(max(0.0, outcome.finished_at_ms - received_at_ms), 3)
        text = f',"queue_wait_ms":{queue_wait_ms},"end_to_end_ms":{end_to_end_ms},'
        if own.status != "succeeded":
            return f'{text}"error":{_error(own)}'
        if self._rows is None:
            self._rows = _all_scores(outcome)
        scores = [self._rows[index]] if self._rows else _scores(own)
        found = [
            f'{{"class":{_json(each)},"scores":{row}}}' for each, row in zip(own.classes, scores, strict=True)
        ]
        return f'{text}"predictions":[{",".join(found)}]'


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _error(own: JobOutcome) -> str:
    return _json({"code": own.error_code, "detail": own.error_detail})


def _all_scores(outcome: BatchOutcome) -> list[str]:
    """The scores of each job, as JSON, written in one go; nothing unless each has one sample and as many scores."""
    sizes = {(len(job.classes), len(job.scores)) for job in outcome.jobs}
    n_samples, n_bytes = sizes.pop() if len(sizes) == 1 else (0, 0)
    if n_samples != 1 or not n_bytes:
        return []
    return _rows(b"".join([job.scores for job in outcome.jobs]), len(outcome.jobs))


def _scores(own: JobOutcome) -> list[str]:
    """The scores of each of a job's samples, as JSON.

    Raises:
        WireError: They cannot be read.
    """
    if not own.scores:
        return ["null"] * len(own.classes)
    return _rows(own.scores, len(own.classes))


def _rows(scores: bytes, n_rows: int) -> list[str]:
    try:
        table = np.frombuffer(scores, SCORE).reshape(n_rows, -1)
    except ValueError as error:
        raise WireError(f"the outcome's scores cannot be read: {error}") from None
    return [f"[{row}]" for row in _json(table)[2:-2].split("],[")]
