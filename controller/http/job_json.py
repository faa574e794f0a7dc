"""Encodes jobs as JSON for callers; the jobs of a batch with uniform results are encoded together."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, cast

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from app.contract import OUTPUT_DTYPES
from app.ledger.controller_ledger import JobView
from app.ledger.ids import JobRef
from app.ledger.webhook_list import read_state
from app.ledger.wire import (
    EXPIRED,
    Array,
    BatchHead,
    BatchOutcome,
    JobEntry,
    JobOutcome,
    Label,
    Outputs,
    Scores,
)
from app.server_errors import WireError
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
        outcome: Outcome of its batch, if it has one.
        prefix: Path prefix of its `result_url`.

    Raises:
        WireError: Its scores or outputs are unreadable.
    """
    entry, job_id = head.jobs[ref.index], f"{ref.batch_id}.{ref.index}"
    document = {
        "id": job_id,
        "status": status,
        "result_url": f"{prefix}/results/{job_id}",
        **_common(head, entry, outcome),
    }
    if outcome:
        for name, until_ms in (
            ("queue_wait_ms", outcome.started_at_ms),
            ("end_to_end_ms", outcome.finished_at_ms),
        ):
            document[name] = max(int((until_ms - entry.received_at_ms) * 1000), 0) / 1000
        document |= _result(outcome.jobs[ref.index], outcome.labels)
    elif status == "expired":
        document |= _result(EXPIRED)
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def view_json(view: JobView, prefix: str = "") -> bytes:
    """A job that was read from the ledger, as JSON: as `job_json`, and the state of its webhook if it has one."""
    body = job_json(view.ref, view.head, view.status, view.outcome, prefix)
    url = view.head.callbacks.get(view.ref.index)
    if not url:
        return body
    return b'%b,"webhook":%b}' % (body[:-1], msgspec.json.encode(read_state(url, view.webhook)))


class BatchJson:
    """Encodes the jobs of one batch, with the same result as `job_json` for each.

    For many jobs, encoding their numbers together takes half the time.

    Args:
        prefix: Path prefix of each `result_url`.
    """

    __slots__ = ("_batch_id", "_head", "_prefix", "_together")

    def __init__(self, batch_id: str, head: BatchHead, prefix: str = "") -> None:
        self._batch_id = batch_id
        self._head = head
        self._prefix = prefix
        self._together: list[bytes] | None = (
            None  # written on first use; empty if the results are not uniform
        )

    def job(self, index: int, status: Status, outcome: BatchOutcome | None) -> bytes:
        """The job at `index`.

        Args:
            status: Status of this job.
            outcome: Outcome of the batch, if it has one; the same object in every call.

        Raises:
            WireError: Its scores or outputs are unreadable.
        """
        if outcome and len(outcome.jobs) > 1:
            if self._together is None:
                self._together = _write_together(self._batch_id, self._head, outcome, self._prefix)
            if self._together:
                return self._together[index]
        return job_json(JobRef(self._batch_id, index), self._head, status, outcome, self._prefix)


def _common(head: BatchHead, entry: JobEntry, outcome: BatchOutcome | None) -> dict[str, Any]:
    """The members that the jobs of a batch share if one rule chose their queue."""
    common: dict[str, Any] = {
        "worker": head.worker,
        "model_name": head.model_name,
        "model_version": head.model_version,
        "val_accuracy": head.val_accuracy,
        "policy": entry.policy,
        "forced": entry.forced,
    }
    if head.metric:
        common |= {"metric": head.metric, "direction": head.direction, "metric_value": head.metric_value}
    if entry.degraded:
        common["degraded"] = True
    if head.cold:
        common["cold"] = True
    if entry.comparable is False:
        common["comparable"] = False
    if head.resent_from:
        common["resent_from"] = head.resent_from
    if head.rerouted_from:
        common["rerouted_from"] = head.rerouted_from
    if outcome:
        common["worker_id"] = outcome.worker_id or None
        common["batch_samples"] = outcome.n_samples
        common["inference_ms"] = outcome.inference_ms
    return common


def _result(own: JobOutcome, labels: Sequence[Label] = ()) -> dict[str, Any]:
    """The members that hold a job's result: predictions, outputs or an error."""
    if own.status != "succeeded":
        return {"error": {"code": own.error_code, "detail": own.error_detail}}
    result: dict[str, Any] = {}
    if own.classes or own.outputs is None:
        if own.task == REGRESSION:
            result["predictions"] = [{"value": each} for each in own.classes]
        else:
            rows = _table(own.scores, len(own.classes)) if own.scores else [None] * len(own.classes)
            pairs = zip(own.classes, rows, strict=True)
            result["predictions"] = [{"class": each, "scores": row} for each, row in pairs]
            if labels and (own.scores or _index_names(own.classes, labels)):
                for prediction in result["predictions"]:
                    prediction["label"] = _label(prediction["class"], labels)
        if not isinstance(own.scores, bytes):
            result["scores_dtype"] = own.scores[0]
        if own.outputs is None and not own.task:  # `class` may be no class then
            result["outputs"] = orjson.Fragment(predictions_json(own))
            if own.scores:
                result["outputs_dtype"] = result.get("scores_dtype", "float32")
    elif own.task == CLASSIFICATION and isinstance(own.outputs, bytes) and own.outputs[:1] == b"[":
        result["predictions"] = [{"label": each} for each in orjson.loads(own.outputs)]
    if own.outputs is not None:
        result["outputs"] = orjson.Fragment(outputs_json(own.outputs))
        if not isinstance(own.outputs, bytes):
            result["outputs_dtype"] = _dtypes(own.outputs)
    return result


def _index_names(classes: Sequence[float], labels: Sequence[Label]) -> bool:
    """Whether classes without scores are indexes of names. Labels that are numbers are the classes themselves."""
    return all(type(each) is int for each in classes) and all(isinstance(each, str) for each in labels)


def _label(index: float, labels: Sequence[Label]) -> Label | None:
    """The label of a class; None for a row with NaN."""
    return labels[int(index)] if 0 <= index < len(labels) else None


def _write_together(batch_id: str, head: BatchHead, outcome: BatchOutcome, prefix: str) -> list[bytes]:
    """All jobs of a batch; empty unless all succeeded with uniform results.

    These are one sample with scores and no labels, or arrays of equal shape and nothing else. Only text is
    written per job. A document per job would take twice as long.
    """
    jobs, entries = outcome.jobs, head.jobs
    kinds = {(job.status, len(job.classes), len(job.scores), type(job.outputs), job.task) for job in jobs}
    status, n_samples, size, outputs, task = kinds.pop() if len(kinds) == 1 else ("", 0, 0, None, "")
    if status != "succeeded":
        return []
    if n_samples == 1 and size and outputs is NoneType and not outcome.labels:
        scores = _joined([job.scores for job in jobs])
        if scores is None:
            return []
        classes = _json([job.classes[0] for job in jobs])[1:-1].split(",")
        rows = _json(_table(scores, len(jobs)))[2:-2].split("],[")
        name = "float32" if isinstance(scores, bytes) else scores[0]
        dtype = "" if isinstance(scores, bytes) else f',"scores_dtype":"{name}"'
        results = [
            f'"predictions":[{{"class":{each},"scores":[{row}]}}]{dtype}'
            for each, row in zip(classes, rows, strict=True)
        ]
        if not task:
            results = [
                f'{each},"outputs":[[{row}]],"outputs_dtype":"{name}"'
                for each, row in zip(results, rows, strict=True)
            ]
    elif n_samples == 0 and outputs is Array:
        arrays = [cast(Array, job.outputs) for job in jobs]
        forms = {(each.dtype, tuple(each.shape)) for each in arrays}
        dtype, shape = forms.pop() if len(forms) == 1 else ("", ())
        if not all(shape) or not shape:
            return []
        whole = _array(Array(dtype, (len(jobs), *shape), b"".join([each.data for each in arrays])))
        opening, closing = "[" * len(shape), "]" * len(shape)
        rows = whole[1 + len(shape) : -1 - len(shape)].split(f"{closing},{opening}")
        results = [f'"outputs":{opening}{row}{closing},"outputs_dtype":"{dtype}"' for row in rows]
    else:
        return []
    common = {(each.policy, each.forced, each.decision): "" for each in entries}
    for entry in entries:
        rule = entry.policy, entry.forced, entry.decision
        common[rule] = common[rule] or _json(_common(head, entry, outcome))[1:-1]
    times = []
    for until_ms in (outcome.started_at_ms, outcome.finished_at_ms):
        # Integer microseconds, because `round` takes three times as long.
        each_us = [int((until_ms - entry.received_at_ms) * 1000) for entry in entries]
        times.append(_json([us / 1000 if us > 0 else 0.0 for us in each_us])[1:-1].split(","))
    start, url = f'{{"id":"{batch_id}.', f'","status":"{status}","result_url":"{prefix}/results/{batch_id}.'
    return [
        f'{start}{index}{url}{index}",{common[entry.policy, entry.forced, entry.decision]},"queue_wait_ms":{wait},'
        f'"end_to_end_ms":{took},{result}}}'.encode()
        for index, (entry, wait, took, result) in enumerate(zip(entries, *times, results, strict=True))
    ]


def _joined(scores: Sequence[Scores]) -> Scores | None:
    """The concatenated scores of several jobs; None if their dtypes or sizes differ."""
    with suppress(TypeError):  # by trial: checking each takes longer than joining them
        return b"".join(cast(Sequence[bytes], scores))
    named = [each for each in scores if isinstance(each, tuple)]
    kinds = {(name, len(data)) for name, data in named}
    if len(named) < len(scores) or len(kinds) > 1:
        return None
    return named[0][0], b"".join([data for _, data in named])


def predictions_json(own: JobOutcome) -> str:
    """The output of a succeeded job in the form of MLflow's `predictions`.

    Raises:
        WireError: Its outputs or scores are unreadable.
    """
    if own.outputs is not None:
        return outputs_json(own.outputs)
    return _json(_table(own.scores, len(own.classes)) if own.scores else own.classes)


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


def _dtypes(outputs: Array | dict[str, Array]) -> str | dict[str, str]:
    """The dtypes of arrays, which JSON does not say."""
    if isinstance(outputs, Array):
        return outputs.dtype
    return {name: each.dtype for name, each in outputs.items()}


def _array(array: Array) -> str:
    try:
        values = np.frombuffer(array.data, DTYPES[array.dtype]).reshape(array.shape)
    except (KeyError, ValueError) as error:
        raise WireError(f"the outcome's outputs cannot be read: {error}") from None
    if array.dtype == "float16":
        values = values.astype(np.float64)
    # orjson refuses arrays with an empty dimension or without dimensions.
    return _json(values if values.size and values.ndim else values.tolist())


def _table(scores: Scores, n_rows: int) -> NDArray[Any]:
    """Scores, shape (n_rows, n_scores), in a dtype that orjson encodes."""
    name, data = ("float32", scores) if isinstance(scores, bytes) else scores
    try:
        table = np.frombuffer(data, DTYPES[name]).reshape(n_rows, -1)
    except (KeyError, ValueError) as error:
        raise WireError(f"the outcome's scores cannot be read: {error}") from None
    return table.astype(WRITTEN_AS[name]) if name in WRITTEN_AS else table


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
