"""Encodes jobs as JSON for callers; the parts common to the jobs of a batch are encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, cast

import numpy as np
import orjson

from app.contract import OUTPUT_DTYPES
from app.errors import WireError
from app.ledger import ids
from app.ledger.ids import JobRef
from app.ledger.wire import (
    EXPIRED,
    Array,
    BatchHead,
    BatchOutcome,
    JobEntry,
    JobOutcome,
    Outputs,
    Scores,
)
from modelyard.schemas import Status

CLASSIFICATION = "classification"  # a version's task that answers labels, where it answers no numbers
REGRESSION = "regression"  # the task of a version that returns values instead of classes
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in OUTPUT_DTYPES}
# Dtypes that are converted before encoding: booleans to 0 and 1, and float16 to keep all its digits (orjson writes
# only the digits that distinguish float32 numbers).
WRITTEN_AS = {"bool": np.uint8, "float16": np.float64}


def result_url(job_id: str, prefix: str = "") -> str:
    """Path of a job's result; `prefix` as in the settings."""
    return f"{prefix}/results/{job_id}"


def job_json(
    ref: JobRef, head: BatchHead, status: Status, outcome: BatchOutcome | None, prefix: str = ""
) -> bytes:
    """A job as JSON: its receipt, and its outcome if it has one.

    Args:
        prefix: Path prefix of its `result_url`.

    Raises:
        WireError: Its scores are unreadable.
    """
    return BatchJson(ref.batch_id, head, alone=True, prefix=prefix).job(ref.index, status, outcome)


class BatchJson:
    """Encodes the jobs of one batch.

    Args:
        alone: Whether only one of the jobs is needed.
        prefix: Path prefix of each `result_url`.
    """

    __slots__ = ("_batch_id", "_common", "_head", "_results", "_together")

    def __init__(self, batch_id: str, head: BatchHead, alone: bool = False, prefix: str = "") -> None:
        self._results = result_url("", prefix)
        self._batch_id = batch_id
        self._head = head
        self._common: dict[tuple[str, bool, bool], str] = {}
        # The encoded parts that differ per job, filled on first use; unused if each job is encoded separately.
        self._together: list[str] | None = [] if alone else None

    def job(self, index: int, status: Status, outcome: BatchOutcome | None) -> bytes:
        """The job at `index`.

        Args:
            status: Status of this job.
            outcome: Outcome of the batch, if it has one; the same object in every call.

        Raises:
            WireError: Its scores are unreadable.
        """
        entry = self._head.jobs[index]
        key = (entry.policy, entry.forced, outcome is not None)
        common = self._common.get(key) or self._write_common(key, outcome)
        job_id = ids.job_id(self._batch_id, index)
        text = f'{{"id":"{job_id}","status":"{status}","result_url":"{self._results}{job_id}",{common}'
        if outcome:
            text += self._own(index, outcome)
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

    def _own(self, index: int, outcome: BatchOutcome) -> str:
        """The part of an outcome that is specific to one job."""
        entries = self._head.jobs
        if self._together is None:
            results = _all_results(outcome.jobs)
            self._together = _with_times(entries, outcome, results) if results else []
        if self._together:
            return self._together[index]
        return _with_times([entries[index]], outcome, [_result(outcome.jobs[index])])[0]


def _with_times(entries: Sequence[JobEntry], outcome: BatchOutcome, results: Sequence[str]) -> list[str]:
    """Durations of a batch's jobs, in milliseconds since each job's arrival, and their results."""
    written = []
    for until_ms in (outcome.started_at_ms, outcome.finished_at_ms):
        # Integer microseconds, because `round` takes three times as long.
        each_us = [int((until_ms - entry.received_at_ms) * 1000) for entry in entries]
        written.append(_each([us / 1000 if us > 0 else 0.0 for us in each_us]))
    return [
        f',"queue_wait_ms":{wait},"end_to_end_ms":{end},{result}'
        for wait, end, result in zip(*written, results, strict=True)
    ]


def _all_results(jobs: Sequence[JobOutcome]) -> list[str]:
    """The results of all jobs, encoded together; empty unless all succeeded with one sample and uniform scores."""
    kinds = {(job.status, len(job.classes), len(job.scores), type(job.outputs)) for job in jobs}
    status, n_samples, size, outputs = kinds.pop() if len(kinds) == 1 else ("", 0, 0, None)
    if status != "succeeded" or n_samples != 1 or not size or outputs is not NoneType:
        return []
    scores = _joined([job.scores for job in jobs])
    if scores is None:
        return []
    predictions = _predictions([job.classes[0] for job in jobs], _rows(scores, len(jobs)))
    end = f"]{_dtype_member(scores)}"
    return [f'"predictions":[{each}{end}' for each in predictions]


def _joined(scores: Sequence[Scores]) -> Scores | None:
    """The concatenated scores of several jobs; None if their dtypes or sizes differ."""
    with suppress(TypeError):  # by trial: checking each takes longer than joining them
        return b"".join(cast(Sequence[bytes], scores))
    named = [each for each in scores if isinstance(each, tuple)]
    kinds = {(name, len(data)) for name, data in named}
    if len(named) < len(scores) or len(kinds) > 1:
        return None
    return named[0][0], b"".join([data for _, data in named])


def _result(own: JobOutcome) -> str:
    """The result of one job.

    Raises:
        WireError: Its scores are unreadable.
    """
    if own.status != "succeeded":
        return f'"error":{_error(own)}'
    members = []
    if own.classes or own.outputs is None:
        rows = _rows(own.scores, len(own.classes)) if own.scores else ["null"] * len(own.classes)
        predictions = _predictions(own.classes, rows) if own.task != REGRESSION else _values(own.classes)
        members.append(f'"predictions":[{",".join(predictions)}]{_dtype_member(own.scores)}')
    elif own.task == CLASSIFICATION and isinstance(own.outputs, bytes) and own.outputs[:1] == b"[":
        labels = [f'{{"label":{_json(each)}}}' for each in orjson.loads(own.outputs)]
        members.append(f'"predictions":[{",".join(labels)}]')
    if own.outputs is not None:
        members.append(f'"outputs":{outputs_json(own.outputs)}')
    return ",".join(members)


def predictions_json(own: JobOutcome) -> str:
    """The output of a succeeded job in the form of MLflow's `predictions`.

    Raises:
        WireError: Its outputs or scores are unreadable.
    """
    if own.outputs is not None:
        return outputs_json(own.outputs)
    return f"[{','.join(_rows(own.scores, len(own.classes)) if own.scores else _each(own.classes))}]"


def outputs_json(outputs: Outputs) -> str:
    """A model's output as JSON.

    Raises:
        WireError: The output is unreadable.
    """
    if isinstance(outputs, bytes):
        return outputs.decode()
    if isinstance(outputs, Array):
        return _array(outputs)
    return "{" + ",".join([f"{_json(name)}:{_array(each)}" for name, each in outputs.items()]) + "}"


def _array(array: Array) -> str:
    try:
        values = np.frombuffer(array.data, DTYPES[array.dtype]).reshape(array.shape)
    except (KeyError, ValueError) as error:
        raise WireError(f"the outcome's outputs cannot be read: {error}") from None
    if array.dtype == "float16":
        values = values.astype(np.float64)
    # orjson refuses arrays with an empty dimension or without dimensions.
    return _json(values if values.size and values.ndim else values.tolist())


def _values(values: Sequence[float]) -> list[str]:
    """The values of a regression, one per sample."""
    return [f'{{"value":{each}}}' for each in _each(values)]


def _predictions(classes: Sequence[float], rows: Sequence[str]) -> list[str]:
    """One prediction per sample, with its row of scores."""
    return [f'{{"class":{each},"scores":{row}}}' for each, row in zip(_each(classes), rows, strict=True)]


def _dtype_member(scores: Scores) -> str:
    """The member that names the scores' dtype, unless it is float32."""
    return "" if isinstance(scores, bytes) else f',"scores_dtype":"{scores[0]}"'


def _rows(scores: Scores, n_rows: int) -> list[str]:
    """Scores as JSON, one row per sample."""
    name, data = ("float32", scores) if isinstance(scores, bytes) else scores
    try:
        table = np.frombuffer(data, DTYPES[name]).reshape(n_rows, -1)
    except (KeyError, ValueError) as error:
        raise WireError(f"the outcome's scores cannot be read: {error}") from None
    if name in WRITTEN_AS:
        table = table.astype(WRITTEN_AS[name])
    return [f"[{row}]" for row in _json(table)[2:-2].split("],[")]


def _each(numbers: Sequence[float]) -> list[str]:
    """Each number as JSON."""
    return _json(numbers)[1:-1].split(",") if numbers else []


def _error(own: JobOutcome) -> str:
    return _json({"code": own.error_code, "detail": own.error_detail})


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
