"""Converts the inputs of a batch's jobs for the model: an array, a dictionary of arrays, a DataFrame or a document.

pandas is imported only for contracts of columns, and MLflow's reader only for versions without a contract.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract import Column, ColumnsContract, Contract, TensorsContract
from app.contract.column_values import NAT, TIME_EXTENSION
from app.contract.documents import CSV, UNIFIED, Document
from app.errors import WireError, first_line
from app.ledger.worker_ledger import ClaimedBatch

Array = NDArray[Any]
DTYPES = {"boolean": "bool", "integer": "int32", "long": "int64", "float": "float32", "double": "float64"}


def model_input(batch: ClaimedBatch, indexes: Sequence[int], contract: Contract) -> Any:
    """Input of some jobs of a batch, one after the other.

    Args:
        contract: Of the batch's version.

    Raises:
        WireError: Their data are not what the batch's head says.
    """
    head = batch.head
    try:
        if head.kind == "tensor":
            n_samples = sum([head.jobs[each].n_samples for each in indexes])
            is_whole = len(indexes) == len(head.jobs)
            data = batch.data if is_whole else b"".join([job_data(batch, each) for each in indexes])
            # A copy that may be written to: torch refuses to promise anything about read-only memory.
            return np.frombuffer(bytearray(data), head.dtype).reshape(n_samples, *head.sample_shape)
        return to_input([decode(job_data(batch, each)) for each in indexes], contract)
    except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
        raise WireError(f"the record's samples are not what its head says: {first_line(error)}") from None


def job_data(batch: ClaimedBatch, index: int) -> bytes:
    """The data of one job.

    Raises:
        WireError: The record's data does not match its head.
    """
    head = batch.head
    sizes: Sequence[int] = head.sizes
    if head.kind == "tensor":
        n_samples = sum([job.n_samples for job in head.jobs])
        sizes = [job.n_samples * (len(batch.data) // max(n_samples, 1)) for job in head.jobs]
    if len(sizes) != len(head.jobs) or sum(sizes) != len(batch.data):
        raise WireError(f"the record holds {len(batch.data)} bytes of samples; its head says {sum(sizes)}")
    start = sum(sizes[:index])
    return batch.data[start : start + sizes[index]]


def _extension(code: int, data: memoryview) -> Any:
    if code != TIME_EXTENSION:
        raise ValueError(f"MessagePack extension {code}")
    return np.datetime64(int.from_bytes(data, "little", signed=True), "ns")


decode = msgspec.msgpack.Decoder(ext_hook=_extension).decode


def to_input(documents: Sequence[Any], contract: Contract) -> Any:
    """The model's input for jobs with these data, which all have the same form."""
    if isinstance(contract, ColumnsContract):
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


def _frame(documents: Sequence[Any], contract: ColumnsContract) -> Any:
    import pandas as pd

    columns = {}
    for place, column in enumerate(contract.columns):
        parts = [each[place] for each in documents]
        if parts[0] is not None:
            values = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
            columns[place if column.name is None else column.name] = _column(values, column, pd)
    return pd.DataFrame(columns, copy=False)


def _column(values: list[Any], column: Column, pd: Any) -> Any:
    kind = column.type.kind
    if kind == "datetime":
        return np.array([NAT if each is None else each for each in values], "datetime64[ns]")
    if kind in DTYPES and not (kind == "boolean" and None in values):
        return np.array(values, DTYPES[kind])
    series = pd.Series(values, dtype=None if kind == "string" and values else object)
    # Text has pandas's string type; other values that MLflow's lenient checks accepted stay unchanged.
    return series if isinstance(series.dtype, pd.StringDtype) else series.astype(object)


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
