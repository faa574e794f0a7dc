"""Packs the columns of larger tables as bytes: workers then need no Python object for each value."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.contract import ColumnsContract

PACKED_ROWS = 16  # for fewer rows a list takes less time to write and to read
DTYPES = {"boolean": "?", "integer": "<i4", "long": "<i8", "float": "<f4", "double": "<f8"}
FORMATS = {
    "integer": "i",
    "long": "q",
    "float": "f",
    "double": "d",
}  # of `struct`, which is faster than NumPy


def pack(columns: Sequence[Any], contract: ColumnsContract, n_rows: int) -> Sequence[Any]:
    """The columns of a job, each packed if it holds numbers or booleans without gaps; a gap among floats is NaN."""
    if n_rows < PACKED_ROWS:
        return columns
    return [
        values if values is None else _packed(values, column.type.kind)
        for values, column in zip(columns, contract.columns, strict=True)
    ]


def _packed(values: Sequence[Any], kind: str) -> Any:
    with suppress(struct.error, TypeError, ValueError, OverflowError):
        if kind == "boolean":
            return bytes(values)  # refuses None, which the format `?` takes for false
        if kind in FORMATS:
            return _packer(FORMATS[kind], len(values))(*values)
    with suppress(TypeError, ValueError, OverflowError):
        if kind in ("float", "double"):
            return np.array(values, DTYPES[kind]).tobytes()
    return values


@lru_cache(maxsize=1024)
def _packer(code: str, n_values: int) -> Any:
    return struct.Struct(f"<{n_values}{code}").pack


def unpack(packed: bytes, kind: str) -> NDArray[Any]:
    """The values of a packed column; read only."""
    return np.frombuffer(packed, DTYPES[kind])
