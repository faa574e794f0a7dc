"""Converts the inputs of a batch's jobs for the model: an array, a dictionary of arrays, a DataFrame or a document.

pandas is imported only for contracts of columns, and MLflow's reader only for versions without a contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract import Column, ColumnsContract, ColumnType, Contract, TensorsContract
from app.contract.column_values import EXTENSIONS, NAT
from app.contract.documents import CSV, UNIFIED, Document
from app.contract.packed_columns import DTYPES, PACKED_ROWS, unpack
from app.ledger.worker_ledger import ClaimedBatch
from app.server_errors import WireError, first_line

Array = NDArray[Any]


def model_input(
    batch: ClaimedBatch, indexes: Sequence[int], contract: Contract, takes_matrix: bool = False
) -> Any:
    """Input of some jobs of a batch, one after the other.

    Args:
        contract: Of the batch's version.
        takes_matrix: See `to_input`.

    Raises:
        WireError: Their data do not match the batch's head.
    """
    head = batch.head
    try:
        if head.kind == "tensor":
            n_samples = sum([head.jobs[each].n_samples for each in indexes])
            is_whole = len(indexes) == len(head.jobs)
            data = batch.data if is_whole else b"".join(_parts(batch, indexes))
            # A copy that may be written to: torch refuses to promise anything about read-only memory.
            return np.frombuffer(bytearray(data), head.dtype).reshape(n_samples, *head.sample_shape)
        return to_input([decode(each) for each in _parts(batch, indexes)], contract, takes_matrix)
    except (msgspec.DecodeError, ValueError, TypeError, LookupError) as error:
        raise WireError(f"the record's samples are not what its head says: {first_line(error)}") from None


def job_data(batch: ClaimedBatch, index: int) -> bytes:
    """The data of one job.

    Raises:
        WireError: The record's data does not match its head.
    """
    [data] = _parts(batch, [index])
    return data


def _parts(batch: ClaimedBatch, indexes: Sequence[int]) -> list[bytes]:
    head = batch.head
    sizes: Sequence[int] = head.sizes
    if head.kind == "tensor":
        n_samples = sum([job.n_samples for job in head.jobs])
        sizes = [job.n_samples * (len(batch.data) // max(n_samples, 1)) for job in head.jobs]
    if len(sizes) != len(head.jobs) or sum(sizes) != len(batch.data):
        raise WireError(f"the record holds {len(batch.data)} bytes of samples; its head says {sum(sizes)}")
    ends = list(accumulate(sizes))
    return [batch.data[ends[each] - sizes[each] : ends[each]] for each in indexes]


_EXTENSION_DTYPES = dict(EXTENSIONS.values())


def _extension(code: int, data: memoryview) -> Any:
    if code not in _EXTENSION_DTYPES:
        raise ValueError(f"MessagePack extension {code}")
    return np.frombuffer(data, _EXTENSION_DTYPES[code])[0]


decode = msgspec.msgpack.Decoder(ext_hook=_extension).decode


def to_input(documents: Sequence[Any], contract: Contract, takes_matrix: bool = False) -> Any:
    """The model's input for jobs with these data, which all have the same form.

    Args:
        takes_matrix: Whether the model takes columns of numbers as float64, shape (n_rows, n_columns), if none is
            absent.
    """
    if isinstance(contract, ColumnsContract):
        if takes_matrix and None not in documents[0]:
            return _matrix(documents, contract)
        return _frame(documents, contract)
    if isinstance(contract, TensorsContract):
        return _tensors(documents, contract)
    [(key, value)] = documents
    return Document(key, value)


def _tensors(documents: Sequence[Any], contract: TensorsContract) -> Any:
    arrays = [
        np.concatenate(parts) if len(parts) > 1 else parts[0]
        for parts in ([_array(*each[place]) for each in documents] for place in range(len(contract.tensors)))
    ]
    [first, *_] = contract.tensors
    if first.name is None:
        return arrays[0]
    return {field.name: array for field, array in zip(contract.tensors, arrays, strict=True)}


def _array(dtype: str, shape: Sequence[int], data: Any) -> Array:
    if dtype == "str":
        return np.array(data, object).reshape(shape)
    return np.frombuffer(bytearray(data), np.dtype(dtype).newbyteorder("<")).reshape(shape)


def is_numeric(contract: Contract) -> bool:
    """Whether a matrix can hold each column that the contract allows."""
    return isinstance(contract, ColumnsContract) and all(
        each.type.kind in DTYPES and (each.required or each.type.kind != "boolean")
        for each in contract.columns
    )


def _matrix(documents: Sequence[Any], contract: ColumnsContract) -> Array:
    """The columns as float64; a missing value is NaN. It takes a quarter of the time of a DataFrame."""
    if _may_be_packed(documents):
        columns = zip(contract.columns, zip(*documents, strict=True), strict=True)
        numbers = [_numbers(parts, column.type.kind) for column, parts in columns]
        return np.stack(numbers, axis=1, dtype=np.float64, casting="unsafe")
    n_columns, n_rows = len(contract.columns), len(documents[0][0])
    if {len(each[0]) for each in documents} == {n_rows}:
        values = list(chain.from_iterable(chain.from_iterable(documents)))
        shape = (len(documents), n_columns, n_rows)
        matrix = np.array(values, np.float64).reshape(shape).transpose(0, 2, 1).reshape(-1, n_columns)
    else:
        matrix = np.concatenate([np.array(each, np.float64).T for each in documents])
    rounded = [place for place, column in enumerate(contract.columns) if column.type.kind == "float"]
    matrix[:, rounded] = matrix[:, rounded].astype(np.float32)
    return matrix


def _frame(documents: Sequence[Any], contract: ColumnsContract) -> Any:
    import pandas as pd

    may_be_packed = _may_be_packed(documents)
    columns, names = [], []
    for place, (column, parts) in enumerate(zip(contract.columns, zip(*documents, strict=True), strict=True)):
        if parts[0] is not None:
            if may_be_packed and {*map(type, parts)} == {bytes}:
                columns.append(_numbers(parts, column.type.kind))
            else:
                lists = _lists(parts, column.type.kind) if may_be_packed else parts
                values = lists[0] if len(lists) == 1 else list(chain.from_iterable(lists))
                columns.append(_column(values, column, pd))
            names.append(place if column.name is None else column.name)
    # With numbers for names, and the names afterwards: pandas would look each of them up.
    frame = pd.DataFrame(dict(enumerate(columns)), copy=False)
    frame.columns = _index(tuple(names)).view()  # a model may rename its own
    return frame


@lru_cache(maxsize=64)
def _index(names: tuple[str | int, ...]) -> Any:
    import pandas as pd

    return pd.Index(names)


def _may_be_packed(documents: Sequence[Any]) -> bool:
    """Whether a job has enough rows for its columns to be packed; all jobs have the same columns."""
    place = next((place for place, values in enumerate(documents[0]) if values is not None), None)
    return place is not None and any(len(each[place]) >= PACKED_ROWS for each in documents)


def _numbers(parts: Sequence[Any], kind: str) -> Array:
    """A column of numbers or booleans without gaps, packed or not."""
    arrays = [unpack(each, kind) if type(each) is bytes else np.array(each, DTYPES[kind]) for each in parts]
    return np.concatenate(arrays)  # a copy, which may be written to


def _lists(parts: Sequence[Any], kind: str) -> list[list[Any]]:
    return [unpack(each, kind).tolist() if type(each) is bytes else each for each in parts]


def _column(values: list[Any], column: Column, pd: Any) -> Any:
    kind = column.type.kind
    if kind == "datetime":
        return np.array([NAT if each is None else each for each in values], "datetime64[ns]")
    if kind in DTYPES and not (kind == "boolean" and None in values):
        return np.array(values, DTYPES[kind])
    if _has_lists_of_times(column.type):
        values = [_as_arrays_of_times(each) for each in values]
    series = pd.Series(values, dtype=None if kind == "string" and values else object)
    # Text has pandas's string type; other values that MLflow's lenient checks accepted stay unchanged.
    return series if isinstance(series.dtype, pd.StringDtype) else series.astype(object)


def _has_lists_of_times(kind: ColumnType) -> bool:
    inner = [kind.items] if kind.items else [each.type for each in kind.properties]
    return any(
        (kind.kind == "array" and each.kind == "datetime") or _has_lists_of_times(each) for each in inner
    )


def _as_arrays_of_times(value: Any) -> Any:
    """Lists of times as arrays: MLflow would turn the lists into whole numbers."""
    if isinstance(value, dict):
        return {name: _as_arrays_of_times(each) for name, each in value.items()}
    if not isinstance(value, list):
        return value
    if value and all(isinstance(each, np.datetime64) for each in value):
        return np.array(value)
    return [_as_arrays_of_times(each) for each in value]


def read_unread(document: Document, is_own: bool) -> Any:
    """Parse a document as MLflow's scoring server does for a version without a signature.

    Args:
        is_own: Whether the model takes the value unchanged.

    Raises:
        Exception: MLflow's own exception, if it cannot be parsed.
    """
    if is_own or document.key == UNIFIED:
        return document.value
    from io import StringIO

    from mlflow.pyfunc import scoring_server

    if document.key == CSV:
        return scoring_server.parse_csv_input(StringIO(document.value))
    key = "inputs" if document.key == "data" else document.key
    return scoring_server.infer_and_parse_data({key: document.value})
