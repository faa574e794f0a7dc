"""Turns the answer to a chunk of rows into columns.

Columns are lists of values: a dictionary for each row takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any

from modelyard.client_errors import OutputsNotJoinableError
from modelyard.schemas import Job, Prediction

Columns = dict[str, list[Any]]
NESTED = {list, dict}


def output_columns(job: Job, n_rows: int) -> Columns:
    """The outputs of all rows by name: `class`, `label`, `value`, `score_0` and on, the model's names, or `output`.

    Raises:
        OutputsNotJoinableError: The version does not answer a row for each row.
    """
    columns: Columns = {}
    if job.predictions:
        _check(job, len(job.predictions), n_rows)
        columns = _predictions(job.predictions)
    if not job.has_further_outputs:
        return columns
    if isinstance(job.outputs, dict) and all(_is_rows(each, n_rows) for each in job.outputs.values()):
        return columns | job.outputs
    if n_rows == 1 and not _is_rows(job.outputs, 1):
        return columns | {"output": [job.outputs]}
    _check(job, len(job.outputs) if isinstance(job.outputs, list) else None, n_rows)
    return columns | _named(job.outputs)


def _check(job: Job, n_found: int | None, n_rows: int) -> None:
    if n_found != n_rows:
        raise OutputsNotJoinableError(
            f"{job.model_name} version {job.model_version} does not answer a row for each row; send one row in a "
            "request: --rows 1"
        )


def _is_rows(values: Any, n_rows: int) -> bool:
    return isinstance(values, list) and len(values) == n_rows


def _predictions(predictions: Sequence[Prediction]) -> Columns:
    values = [each.value for each in predictions]
    if any(each is not None for each in values):
        return {"value": values}
    classes, labels = [each.predicted for each in predictions], [each.label for each in predictions]
    has_labels = any(each is not None for each in labels)
    columns: Columns = {}
    if not has_labels or any(each is not None for each in classes):
        columns["class"] = classes
    if has_labels:
        columns["label"] = labels
    scores = zip_longest(*[each.scores or () for each in predictions])
    return columns | {f"score_{place}": [*each] for place, each in enumerate(scores)}


def _named(rows: list[Any]) -> Columns:
    """The columns of rows that are objects, lists of plain values, or anything else."""
    kinds = set(map(type, rows))
    if kinds == {list} and not NESTED & set(map(type, chain.from_iterable(rows))):
        return {f"output_{place}": [*each] for place, each in enumerate(zip_longest(*rows))}
    if kinds == {dict}:
        return {name: [row.get(name) for row in rows] for name in dict.fromkeys(chain.from_iterable(rows))}
    return {"output": rows}
