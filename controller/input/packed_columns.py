"""Packs an Arrow column of numbers as MessagePack: all values at once, in a third of the time of a list of them.

A worker reads the same numbers as from `app.contract.payloads`. Columns that need more than a range check, such as text
or values of another type, are left to `app.contract.tables`.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.contract import Column
from app.contract.column_values import FLOAT32_OVERFLOW, RANGES

# MessagePack's type bytes (github.com/msgpack/msgpack/blob/master/spec.md).
FALSE, FLOAT64, LIST16, LIST32 = 0xC2, 0xCB, 0xDC, 0xDD
INTEGERS = {">i1": 0xD0, ">i2": 0xD1, ">i4": 0xD2, ">i8": 0xD3}


def packed(array: Any, column: Column, allows_missing: bool) -> msgspec.Raw | None:
    """A column in wire form; None if its values must be checked one by one.

    Args:
        array: A `pyarrow.Array`.
        allows_missing: Whether floats may be missing; a missing one is NaN.
    """
    kind, given, may_lack = column.type.kind, array.type, allows_missing and column.required
    if kind in ("float", "double") and pa.types.is_floating(given) and (may_lack or not array.null_count):
        return _floats(_numbers(array), FLOAT32_OVERFLOW if kind == "float" else np.inf, may_lack)
    if array.null_count:
        return None
    if kind in RANGES and pa.types.is_signed_integer(given):
        return _integers(_numbers(array), *RANGES[kind])
    if kind == "boolean" and pa.types.is_boolean(given):
        return _list(_numbers(array).view(np.uint8) + np.uint8(FALSE))
    return None


def _numbers(array: Any) -> NDArray[Any]:
    numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)  # a missing float is NaN
    return numbers


def _floats(values: NDArray[Any], beyond: float, may_lack: bool) -> msgspec.Raw | None:
    sizes = np.abs(values, dtype=np.float64)
    is_good = not (sizes >= beyond).any() if may_lack else (sizes < beyond).all()  # either is False for NaN
    return _list(_cells(FLOAT64, values.astype(">f8"))) if is_good else None


def _integers(values: NDArray[Any], low: int, high: int) -> msgspec.Raw | None:
    least, most = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    if not low <= least <= most <= high:
        return None
    dtype = next(each for each in INTEGERS if np.iinfo(each).min <= least and most <= np.iinfo(each).max)
    return _list(_cells(INTEGERS[dtype], values.astype(dtype)))


def _cells(type_byte: int, values: NDArray[Any]) -> NDArray[np.uint8]:
    cells = np.empty((len(values), 1 + values.itemsize), np.uint8)
    cells[:, 0] = type_byte
    cells[:, 1:] = values.view(np.uint8).reshape(len(values), values.itemsize)
    return cells


def _list(cells: NDArray[np.uint8]) -> msgspec.Raw:
    type_byte, size = (LIST16, 2) if len(cells) < 2**16 else (LIST32, 4)
    return msgspec.Raw(bytes([type_byte]) + len(cells).to_bytes(size, "big") + cells.tobytes())
