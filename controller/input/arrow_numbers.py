"""Packs an Arrow column of numbers as `app.contract.packed_columns` does, without a Python object for each value.

Columns that need more than a range check, such as text or values of another type, are left to `app.contract.tables`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from app.contract import Column
from app.contract.column_values import FLOAT32_OVERFLOW, RANGES
from app.contract.packed_columns import DTYPES, PACKED_ROWS


def packed(array: Any, column: Column, allows_missing: bool) -> bytes | None:
    """A column in wire form; None if its values must be checked one by one, or if there are few of them.

    Args:
        array: A `pyarrow.Array`.
        allows_missing: Whether floats may be missing; a missing one is NaN.
    """
    kind, given, may_lack = column.type.kind, array.type, allows_missing and column.required
    if len(array) < PACKED_ROWS or (array.null_count and not may_lack):
        return None
    if kind in ("float", "double") and pa.types.is_floating(given):
        values = _numbers(array)
        return _bytes(values, kind) if _are_floats(values, kind, may_lack) else None
    if array.null_count:
        return None
    if kind in RANGES and pa.types.is_signed_integer(given):
        values, (low, high) = _numbers(array), RANGES[kind]
        return _bytes(values, kind) if low <= int(values.min()) and int(values.max()) <= high else None
    if kind == "boolean" and pa.types.is_boolean(given):
        return _bytes(_numbers(array), kind)
    return None


def _numbers(array: Any) -> NDArray[Any]:
    numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)  # a missing float is NaN
    return numbers


def _are_floats(values: NDArray[Any], kind: str, may_lack: bool) -> bool:
    sizes, beyond = np.abs(values, dtype=np.float64), FLOAT32_OVERFLOW if kind == "float" else np.inf
    # Either comparison is False for NaN.
    return not (sizes >= beyond).any() if may_lack else bool((sizes < beyond).all())


def _bytes(values: NDArray[Any], kind: str) -> bytes:
    return values.astype(DTYPES[kind]).tobytes()
