"""Packs the columns of larger tables as bytes: workers then need no Python object for each value."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.contract import ColumnsContract

PACKED_ROWS = 16  # for fewer rows a list takes less time to write and to read
DTYPES = {"boolean": "?", "integer": "<i4", "long": "<i8", "float": "<f4", "double": "<f8"}
# Of `struct`, which takes half of NumPy's time.
FORMATS = {"integer": "i", "long": "q", "float": "f", "double": "d"}


def pack(columns: Sequence[Any], contract: ColumnsContract, n_rows: int) -> Sequence[Any]:
    """The columns of a job, each packed if it holds numbers or booleans without gaps; a gap among floats is NaN."""
    if n_rows < PACKED_ROWS:
        return columns
    return [
        values if values is None else _packed(values, column.type.kind)
        for values, column in zip(columns, contract.columns, strict=True)
    ]


def _packed(values: Sequence[Any], kind: str) -> Any:
    if kind not in DTYPES or isinstance(values, bytes):  # packed already
        return values
    try:
        # `bytes` refuses None, which the format `?` would take for false.
        return bytes(values) if kind == "boolean" else _packer(FORMATS[kind], len(values))(*values)
    except (struct.error, TypeError):  # a value is missing
        return np.array(values, DTYPES[kind]).tobytes() if kind in ("float", "double") else values


@lru_cache(maxsize=1024)
def _packer(code: str, n_values: int) -> Any:
    return struct.Struct(f"<{n_values}{code}").pack


def unpack(packed: bytes, kind: str) -> NDArray[Any]:
    """The values of a packed column; read only."""
    return np.frombuffer(packed, DTYPES[kind])
