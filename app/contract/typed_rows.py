"""Reads `dataframe_split` in one pass: the JSON decoder itself checks each row against the columns' types.

It takes bodies whose columns are all those of the contract, in its order, with values of their types. Everything else,
such as other forms and wrong values, is left to `tables`, which gives the same columns for the same body.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgspec

from app.contract import Column, ColumnsContract
from app.contract.column_values import FLOAT32_OVERFLOW, HAVE_MISSING, RANGES

Rows = list[tuple[Any, ...]]
_TYPES: dict[str, Any] = {
    "boolean": bool,
    "double": float,
    "float": Annotated[float, msgspec.Meta(gt=-FLOAT32_OVERFLOW, lt=FLOAT32_OVERFLOW)],
    "string": str,
    **{kind: Annotated[int, msgspec.Meta(ge=low, le=high)] for kind, (low, high) in RANGES.items()},
}


def read_rows(body: bytes, contract: ColumnsContract) -> tuple[Rows, int] | None:
    """The values of each column and the number of rows; None if `tables` must read the body."""
    if not contract.is_flat:
        return None
    decoder, names = _decoder(contract.columns, contract.allows_missing)
    try:
        frame = decoder.decode(body).dataframe_split
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if frame.columns != names or not frame.data:
        return None
    return list(zip(*frame.data, strict=True)), len(frame.data)


@lru_cache(maxsize=64)
def _decoder(
    columns: tuple[Column, ...], allows_missing: bool
) -> tuple[msgspec.json.Decoder[Any], list[str]]:
    types = [
        _TYPES[each.type.kind] | None
        if allows_missing and each.type.kind in HAVE_MISSING
        else _TYPES[each.type.kind]
        for each in columns
    ]
    row: Any = tuple[*types]  # type: ignore[valid-type]
    frame = msgspec.defstruct(
        "Frame", [("columns", list[str]), ("data", list[row])], forbid_unknown_fields=True
    )
    body = msgspec.defstruct("Body", [("dataframe_split", frame)], forbid_unknown_fields=True)
    return msgspec.json.Decoder(body), [str(each.name) for each in columns]
