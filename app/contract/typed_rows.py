"""Reads `dataframe_split` in one pass: the JSON decoder itself checks each row against the columns' types.

It takes bodies whose columns are all those of the contract, in its order, with values of their types. Everything else,
such as other forms and wrong values, is left to `tables`, which gives the same columns for the same body.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Any

import msgspec

from app.contract import ColumnsContract
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
    return _reader(contract).read(body) if contract.is_flat else None


class _Reader:
    """Reads the bodies of one contract.

    A client repeats the list of column names in each request. The last correct spelling of it is compared as bytes,
    which takes a fifth of the time of decoding the names.
    """

    def __init__(self, contract: ColumnsContract) -> None:
        types = [
            _TYPES[each.type.kind] | None
            if contract.allows_missing and each.type.kind in HAVE_MISSING
            else _TYPES[each.type.kind]
            for each in contract.columns
        ]
        row: Any = tuple[*types]  # type: ignore[valid-type]
        frame = msgspec.defstruct(
            "Frame", [("columns", msgspec.Raw), ("data", list[row])], forbid_unknown_fields=True
        )
        body = msgspec.defstruct("Body", [("dataframe_split", frame)], forbid_unknown_fields=True)
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(body).decode
        self._decode_names = msgspec.json.Decoder(list[str]).decode
        self._names = [str(each.name) for each in contract.columns]
        self._spelling = b""

    def read(self, body: bytes) -> tuple[Rows, int] | None:
        """As `read_rows`."""
        if body.count(b'"data"') > 1 or body.count(b'"columns"') > 1:
            return None  # one of them may be there twice
        try:
            frame = self._decode(body).dataframe_split
            names = bytes(frame.columns)
            if names != self._spelling:
                if self._decode_names(names) != self._names:
                    return None
                self._spelling = names
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        rows = frame.data
        return (list(zip(*rows, strict=True)), len(rows)) if rows else None


_reader = lru_cache(maxsize=64)(_Reader)
