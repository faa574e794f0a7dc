"""Turns the answer to a chunk of rows into columns of each row."""

from __future__ import annotations

from typing import Any

from modelyard.client_errors import OutputsNotJoinableError
from modelyard.schemas import Job, Prediction

Columns = dict[str, Any]


def row_outputs(job: Job, n_rows: int) -> list[Columns]:
    """The outputs of each row by name: `class`, `label`, `value`, `score_0` and on, the model's names, or `output`.

    Raises:
        OutputsNotJoinableError: The version does not answer a row for each row.
    """
    rows: list[Columns] = [{} for _ in range(n_rows)]
    if job.predictions:
        _check(job, len(job.predictions), n_rows)
        rows = [_prediction(each) for each in job.predictions]
    if job.outputs is None:
        return rows
    if isinstance(job.outputs, dict) and all(_is_rows(each, n_rows) for each in job.outputs.values()):
        for name, values in job.outputs.items():
            for row, value in zip(rows, values, strict=True):
                row[name] = value
    elif n_rows == 1 and not _is_rows(job.outputs, 1):
        rows[0]["output"] = job.outputs
    else:
        _check(job, len(job.outputs) if isinstance(job.outputs, list) else None, n_rows)
        for row, value in zip(rows, job.outputs, strict=True):
            row |= _named(value)
    return rows


def _check(job: Job, n_found: int | None, n_rows: int) -> None:
    if n_found != n_rows:
        raise OutputsNotJoinableError(
            f"{job.model_name} version {job.model_version} does not answer a row for each row; send one row in a "
            "request: --rows 1"
        )


def _is_rows(values: Any, n_rows: int) -> bool:
    return isinstance(values, list) and len(values) == n_rows


def _prediction(each: Prediction) -> Columns:
    if each.value is not None:
        return {"value": each.value}
    columns: Columns = {} if each.predicted is None and each.label is not None else {"class": each.predicted}
    if each.label is not None:
        columns["label"] = each.label
    return columns | {f"score_{place}": score for place, score in enumerate(each.scores or ())}


def _named(value: Any) -> Columns:
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and not any(isinstance(each, list | dict) for each in value):
        return {f"output_{place}": each for place, each in enumerate(value)}
    return {"output": value}
