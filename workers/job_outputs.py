"""Splits a model's output into the outcomes of the jobs, and keeps dtype and shape exactly.

For a version with a plain tensor that returns one row of numbers per sample and declares no task, the outcome has
`classes` and `scores`, as in the first release. Any other output goes into `outputs`, in the form of MLflow's scoring
server.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import nan
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract import OUTPUT_DTYPES, Contract, TensorContract
from app.ledger.wire import Array, JobOutcome, Outputs
from app.server_errors import ModelContractError, OutputNotFiniteError

FLOAT32 = np.dtype("<f4")
MAX_ITEM_BYTES = 8  # only NumPy's longdouble is larger, and no answer can represent it
# Methods of polars' frames, of PyTorch's tensors, and of polars' series.
LISTING = ("to_dicts", "tolist", "to_list")
CLASSIFICATION, REGRESSION = "classification", "regression"
NOT_FINITE = JobOutcome(
    "failed",
    error_code=OutputNotFiniteError.code,
    error_detail="the model returned NaN or infinity for one of the samples; expected finite numbers: check the "
    "input, or set MODELYARD_ALLOW_NON_FINITE=true for the version's workers if the model uses such values",
)


def to_outcomes(
    output: Any, counts: Sequence[int], contract: Contract, task: str, allows_non_finite: bool
) -> list[JobOutcome]:
    """The outcomes of jobs that ran in one pass.

    Args:
        counts: Number of rows of each job.
        task: The version's declared task; empty without one.
        allows_non_finite: Whether its outputs may contain NaN and infinities.

    Raises:
        ModelContractError: The output does not have one row per input row, or it cannot be encoded.
    """
    if isinstance(contract, TensorContract):
        numbers = output if type(output) is np.ndarray else as_rows_of_numbers(output)
        check_output(numbers, sum(counts), "the model")
        outcomes = split_numbers(numbers, counts, allows_non_finite, task)
        return _with_form(outcomes, output, numbers, counts) if _needs_form(output, task) else outcomes
    if len(counts) == 1:
        return [_outcome(output, task, allows_non_finite)]
    if not task and _is_array(output) and output.ndim and len(output):
        return _split_array(output, counts, allows_non_finite)
    return [_outcome(part, task, allows_non_finite) for part in split(output, counts)]


def _split_array(output: NDArray[Any], counts: Sequence[int], allows_non_finite: bool) -> list[JobOutcome]:
    """The same as `_outcome` for each job's part of one array, computed together."""
    _require_rows(len(output), counts)
    whole = _array(output)
    row_bytes, row_shape = len(whole.data) // len(output), output.shape[1:]
    outcomes, end = [], 0
    for count in counts:
        start, end = end, end + count
        part = Array(whole.dtype, (count, *row_shape), whole.data[start * row_bytes : end * row_bytes])
        outcomes.append(JobOutcome("succeeded", outputs=part))
    if not (allows_non_finite or is_finite(output)):
        ends = list(accumulate(counts))
        rows = np.isfinite(output.reshape(len(output), -1)).all(axis=1)
        for row in np.flatnonzero(~rows):
            outcomes[bisect_right(ends, row)] = NOT_FINITE
    return outcomes


def _outcome(output: Any, task: str, allows_non_finite: bool) -> JobOutcome:
    if not (allows_non_finite or is_finite(output)):
        return NOT_FINITE
    outputs = to_outputs(output)
    numbers = as_rows_of_numbers(output) if task in (CLASSIFICATION, REGRESSION) else None
    if numbers is None or not _are_rows_of_numbers(numbers):
        return JobOutcome("succeeded", outputs=outputs, task=task)
    [outcome] = split_numbers(numbers, [len(numbers)], allows_non_finite, task)
    return msgspec.structs.replace(outcome, outputs=outputs)


def as_rows_of_numbers(output: Any) -> NDArray[Any]:
    """The only array of a dictionary (ONNX models name their outputs); any other output as an array, if possible."""
    if isinstance(output, Mapping) and len(output) == 1:
        (output,) = output.values()
    if isinstance(output, np.ma.MaskedArray):  # `asarray` would show the numbers below the mask
        output = output.tolist()
    try:
        return np.asarray(output)
    except ValueError:  # a ragged sequence
        return np.empty(0, object)


def _are_rows_of_numbers(output: NDArray[Any]) -> bool:
    is_numeric = output.dtype.kind in "fiub" and output.itemsize <= MAX_ITEM_BYTES
    return is_numeric and output.ndim in (1, 2) and output.size > 0


def check_output(output: NDArray[Any], n_samples: int, name: str) -> None:
    """Check that an output has one row of numbers per sample. Non-finite numbers are handled per job.

    Raises:
        ModelContractError: It has not.
    """
    if not _are_rows_of_numbers(output) or len(output) != n_samples:
        raise ModelContractError(
            f"{name} answered {output.dtype} of shape {output.shape} to {n_samples} sample(s); "
            f"expected numbers of at most 64 bits, shape ({n_samples},) or ({n_samples}, n_scores)"
        )


def _needs_form(output: Any, task: str) -> bool:
    """Whether classes and scores cannot represent the output completely."""
    if type(output) is not np.ndarray or output.dtype.kind == "b" or task == REGRESSION:
        return True
    if output.ndim == 1:  # a class has the digits of float64
        return bool(output.dtype.kind == "f" and output.itemsize < MAX_ITEM_BYTES)
    return bool(output.shape[1] == 1)


def _with_form(
    outcomes: list[JobOutcome], output: Any, numbers: NDArray[Any], counts: Sequence[int]
) -> list[JobOutcome]:
    parts = split(output if isinstance(output, Mapping) else numbers, counts)
    return [
        msgspec.structs.replace(own, outputs=to_outputs(part)) if own.status == "succeeded" else own
        for own, part in zip(outcomes, parts, strict=True)
    ]


def split_numbers(
    output: NDArray[Any], counts: Sequence[int], allows_non_finite: bool, task: str = ""
) -> list[JobOutcome]:
    """Split an output, shape (n,) or (n, n_scores), into classes and scores of the jobs."""
    dtype = output.dtype
    if output.ndim == 2 and output.shape[1] > 1:
        classes: list[int | float] = output.argmax(axis=1).tolist()
        if dtype != FLOAT32:
            dtype = dtype.newbyteorder("<")
            output = output.astype(dtype, copy=False)
        scores, row_bytes = output.tobytes(), dtype.itemsize * output.shape[1]
    else:
        # Booleans are stored as 0 and 1: the outcome's classes are numbers.
        classes = (output.view(np.uint8) if dtype.kind == "b" else output).reshape(-1).tolist()
        scores, row_bytes = b"", 0
    rejected: Sequence[int] = ()
    # As bytes: a search for a zero byte takes half the time of `all`.
    if dtype.kind == "f" and np.isfinite(output).tobytes().find(0) >= 0:
        rejected = _non_finite(output, classes, allows_non_finite)
    name = dtype.name if row_bytes and dtype != FLOAT32 else ""
    outcomes, start, start_byte = [], 0, 0
    for count in counts:
        end, end_byte = start + count, start_byte + count * row_bytes
        own = scores[start_byte:end_byte]
        outcomes.append(JobOutcome("succeeded", classes[start:end], (name, own) if name else own, task=task))
        start, start_byte = end, end_byte
    ends = list(accumulate(counts)) if rejected else []
    for row in rejected:
        outcomes[bisect_right(ends, row)] = NOT_FINITE
    return outcomes


def _non_finite(output: NDArray[Any], classes: list[int | float], are_allowed: bool) -> Sequence[int]:
    """Rows that fail their jobs. Otherwise the class of a row with NaN becomes NaN: it has no largest score."""
    rows = output.reshape(len(output), -1)
    if not are_allowed:
        return np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()
    for row in np.flatnonzero(np.isnan(rows).any(axis=1)):
        classes[row] = nan
    return ()


def n_rows(output: Any) -> int | None:
    """Number of rows of an output, or None; all members of a dictionary or tuple must have the same number."""
    if isinstance(output, Mapping | tuple):
        members = output.values() if isinstance(output, Mapping) else output
        lengths = {n_rows(each) for each in members}
        return lengths.pop() if len(lengths) == 1 else None
    if (
        isinstance(output, str | bytes)
        or not hasattr(output, "__len__")
        or getattr(output, "shape", None) == ()
    ):
        return None
    return len(output)


def split(output: Any, counts: Sequence[int]) -> list[Any]:
    """Split an output by rows.

    Raises:
        ModelContractError: It does not have one row per input row.
    """
    _require_rows(n_rows(output), counts)
    ends = list(accumulate(counts))
    return [_rows(output, end - count, end) for count, end in zip(counts, ends, strict=True)]


def _require_rows(rows: int | None, counts: Sequence[int]) -> None:
    if rows != sum(counts):
        raise ModelContractError(
            f"the model answered {rows} rows to {sum(counts)}; expected one each: its jobs run one by one"
        )


def _rows(output: Any, start: int, end: int) -> Any:
    if isinstance(output, Mapping):
        return {name: _rows(each, start, end) for name, each in output.items()}
    if isinstance(output, tuple):
        return tuple(_rows(each, start, end) for each in output)
    return output.iloc[start:end] if hasattr(output, "iloc") else output[start:end]


def is_finite(output: Any) -> bool:
    """Whether no number in an output is NaN or infinite."""
    if isinstance(output, float | np.floating):
        return math.isfinite(output)
    if isinstance(output, Mapping):
        return all(map(is_finite, output.values()))
    if isinstance(output, np.ndarray):
        if output.dtype.kind == "O":
            return all(map(is_finite, output.reshape(-1).tolist()))
        return output.dtype.kind not in "fc" or bool(np.isfinite(output).all())
    if hasattr(output, "iloc"):
        columns = [each for _, each in output.items()] if hasattr(output, "columns") else [output]
        return all(is_finite(_without_gaps(each)) for each in columns if each.dtype.kind in "fc")
    listed = _listed(output)
    if listed is not output:
        return is_finite(listed)
    return not isinstance(output, list | tuple) or all(map(is_finite, output))


def _without_gaps(series: Any) -> NDArray[Any]:
    """The values of a column. pandas's own types, such as `Float64`, tell a missing value from NaN."""
    numbers: NDArray[Any] = (series if isinstance(series.dtype, np.dtype) else series.dropna()).to_numpy()
    return numbers


def _listed(output: Any) -> Any:
    """Other libraries' arrays and frames as lists; everything else as it is."""
    for method in LISTING:
        if hasattr(output, method):
            return getattr(output, method)()
    return output


def to_outputs(output: Any) -> Outputs:
    """Convert an output for storage: arrays of numbers with their dtype, all other values as JSON.

    Raises:
        ModelContractError: JSON cannot represent it.
    """
    if _is_array(output):
        return _array(output)
    if (
        isinstance(output, Mapping)
        and output
        and all(isinstance(name, str) and _is_array(each) for name, each in output.items())
    ):
        return {name: _array(each) for name, each in output.items()}
    try:
        return msgspec.json.encode(_plain(output), enc_hook=_encoded)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ModelContractError(
            f"the model answered {type(output).__name__}, which JSON cannot represent: {error}"
        ) from None


def _is_array(output: Any) -> bool:
    if not isinstance(output, np.ndarray) or isinstance(output, np.ma.MaskedArray):
        return False
    return output.dtype.name in OUTPUT_DTYPES


def _array(output: NDArray[Any]) -> Array:
    little = output.astype(output.dtype.newbyteorder("<"), copy=False)
    return Array(output.dtype.name, output.shape, little.tobytes())


def _encoded(output: Any) -> Any:
    """What the JSON encoder cannot write itself: None and booleans only where they are keys."""
    return _name(output) if output is None or isinstance(output, bool) else _plain(output)


def _name(key: Any) -> str:
    """A key or a column's label as JSON names it."""
    return json.dumps(key) if key is None or isinstance(key, bool | float) else str(key)


def _plain(output: Any) -> Any:
    """Convert one level of an output for the JSON encoder."""
    if isinstance(output, np.ndarray):
        return _times(output).tolist()
    if isinstance(output, np.datetime64):
        return None if np.isnat(output) else np.datetime_as_string(output)
    if isinstance(output, np.generic):
        return output.item()
    if hasattr(output, "iloc"):
        return _records(output)
    if isinstance(output, dt.datetime | dt.date | dt.time):
        text = output.isoformat()
        return None if text == "NaT" else text
    if isinstance(output, bytes | bytearray):
        return base64.b64encode(output).decode()
    if isinstance(output, Mapping):
        return {_name(name): each for name, each in output.items()}
    if hasattr(output, "model_dump"):  # pydantic's
        return output.model_dump()
    if output is None or isinstance(output, str | int | float | list | tuple | set | frozenset):
        return output
    if type(output).__name__ == "NAType":  # pandas
        return None
    listed = _listed(output)
    if listed is not output:
        return listed
    if isinstance(output, Iterable):
        return list(output)
    raise TypeError(f"a {type(output).__name__}")


def _times(output: NDArray[Any]) -> NDArray[Any]:
    if output.dtype.kind != "M":
        return output
    texts = np.array(np.datetime_as_string(output), object)  # of an array without dimensions it is one text
    texts[np.isnat(output)] = None
    return texts


def _records(output: Any) -> Any:
    """A DataFrame as one object per row; a Series is treated as a DataFrame, as MLflow does."""
    frame = output if hasattr(output, "columns") else output.to_frame()
    columns = {_name(name): _column(each) for name, each in frame.items()}
    if len(columns) < frame.shape[1]:  # MLflow answers only the last of them
        raise ModelContractError(
            f"the model answered a DataFrame with the columns {[*map(str, frame.columns)]}; expected different names"
        )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _column(series: Any) -> list[Any]:
    # pandas's own types would give integers beside a missing value as floats.
    values = series.to_numpy(None if isinstance(series.dtype, np.dtype) else object)
    if values.dtype.kind == "M":
        return list(series)  # as pandas's times, whose text is MLflow's
    if values.dtype.kind == "O":  # columns with text or missing values
        return [None if type(each) is float and math.isnan(each) else each for each in values.tolist()]
    listed: list[Any] = values.tolist()
    return listed
