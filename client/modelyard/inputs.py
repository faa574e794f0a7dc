"""Turns the samples of a caller into request bodies, in parts where a request would be too large.

Values travel exactly: arrays of numbers as NumPy files, larger tables of plain columns as Arrow if pyarrow is
installed, all others as JSON with as many digits as they have.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard.errors import InputNotFiniteError, InputNotNumericError, InputShapeError
from modelyard.frames import (
    array_values,
    arrow_stream,
    arrow_table,
    as_frame,
    column_values,
    has_infinity,
    read_frame,
)

MAX_ITEM_BYTES = 8  # wider floats are not a dtype of any model
JSON, NPY = "application/json", "application/x-npy"
ARROW = "application/vnd.apache.arrow.stream"
ARROW_ROWS = 200  # for fewer rows JSON takes less time, mostly in the controller
Params: TypeAlias = Mapping[str, Any]


class SupportsArray(Protocol):
    """An array of another library, such as a torch tensor."""

    def __array__(self) -> Any:
        """The NumPy array."""


class SupportsArrayInterface(Protocol):
    """An object with NumPy's array interface, such as a PIL image."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """Description of its memory."""


class SupportsArrowStream(Protocol):
    """A table that exports an Arrow stream, such as one of polars."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The stream in a capsule."""


@dataclass(frozen=True)
class Body:
    """A request body that is sent as it is.

    Attributes:
        content: Bytes, or a JSON document such as `WorkerInfo.example`.
        content_type: Content type of the bytes.
    """

    content: Any
    content_type: str = JSON


# pandas has no types, so its tables are not listed; they are taken.
Samples: TypeAlias = (
    NDArray[Any]
    | Sequence[Any]
    | Mapping[str, Any]
    | SupportsArray
    | SupportsArrayInterface
    | SupportsArrowStream
    | Body
)


class Encoded(NamedTuple):
    """A request body."""

    content_type: str
    body: bytes


class Input(Protocol):
    """Samples that can be encoded in parts.

    Attributes:
        n_rows: Number of rows; 1 if it cannot be cut.
    """

    n_rows: int

    def encode(self, start: int, stop: int) -> Encoded:
        """A request body with these rows.

        Raises:
            InputNotNumericError: JSON cannot represent a value.
            InputNotFiniteError: A value is infinite.
        """


def read_input(samples: Any, params: Params | None = None) -> Input:
    """Recognise samples.

    Args:
        samples: See `modelyard.Client.predict`.
        params: Parameters of the request.

    Raises:
        InputNotNumericError: They are of a kind that cannot be sent.
        InputNotFiniteError: An array holds an infinity.
        InputShapeError: The columns of a dict differ in length.
        ConfigurationError: Reading them needs a package that is not installed.
    """
    if isinstance(samples, Body):
        return _Whole(samples, params)
    if isinstance(samples, str | bytes | bytearray | memoryview):
        raise InputNotNumericError(
            f"{type(samples).__name__} is no samples; give an array, lists, a dict of columns or a table, or send the "
            "bytes as they are: Body(content, content_type)"
        )
    frame = as_frame(samples)
    if frame is not None:
        return _frame(frame, params)
    if isinstance(samples, Mapping):
        return _columns(samples, params)
    if isinstance(samples, list | tuple):
        return _listed(samples, params)
    if not _is_array(samples):
        raise InputNotNumericError(
            f"{type(samples).__name__} is no samples; give an array, lists, a dict of columns or a table"
            + _conversion(samples)
        )
    array = _array(samples)
    if array.dtype.names:
        return _columns({name: array[name] for name in array.dtype.names}, params)
    return _Array(array[np.newaxis] if _is_image(samples) else array, params)


def _conversion(samples: Any) -> str:
    """How to make samples of what is none yet, for error messages."""
    for method in ("collect", "toarray"):  # of lazy tables and sparse matrices
        if hasattr(samples, method):
            return f": .{method}() makes one"
    return ": list() makes one; map() predicts many inputs" if isinstance(samples, Iterable) else ""


class _Array:
    """An array, one row for each index of its first dimension."""

    def __init__(self, values: NDArray[Any], params: Params | None) -> None:
        if not _can_be_sent(values):
            raise InputNotNumericError(
                f"an array of {values.dtype} cannot be sent; give one of numbers of at most 64 bits, booleans, text, "
                "bytes or times"
            )
        if values.dtype.kind == "f" and np.isinf(values).any():
            raise InputNotFiniteError("the samples hold an infinity; only finite numbers and NaN can be sent")
        self.n_rows = len(values) if values.ndim else 1
        self._values = values
        self._params = params

    def encode(self, start: int, stop: int) -> Encoded:
        part = self._values[start:stop] if stop - start < self.n_rows else self._values
        if part.dtype.kind not in "fiu" or self._params:
            return _json({"data": array_values(part)}, self._params)
        file = io.BytesIO()
        np.save(file, part.astype(part.dtype.newbyteorder("<"), copy=False), allow_pickle=False)
        return Encoded(NPY, file.getvalue())


class _Table:
    """Columns with names."""

    def __init__(self, names: list[str], columns: list[list[Any]], params: Params | None) -> None:
        self.n_rows = len(columns[0]) if columns else 0
        self._names = names
        self._columns = columns
        self._params = params

    def encode(self, start: int, stop: int) -> Encoded:
        rows = list(zip(*[each[start:stop] for each in self._columns], strict=True))
        return _json({"dataframe_split": {"columns": self._names, "data": rows}}, self._params)


class _ArrowTable:
    """A table of pyarrow."""

    def __init__(self, table: Any) -> None:
        if has_infinity(table):
            raise InputNotFiniteError("the samples hold an infinity; only finite numbers and NaN can be sent")
        self.n_rows: int = table.num_rows
        self._table = table

    def encode(self, start: int, stop: int) -> Encoded:
        return Encoded(ARROW, arrow_stream(self._table.slice(start, stop - start)))


class _Listed:
    """Nested lists, or a list of dicts, one a row."""

    def __init__(self, rows: Sequence[Any], params: Params | None) -> None:
        self.n_rows = len(rows)
        self._rows = rows
        self._params = params

    def encode(self, start: int, stop: int) -> Encoded:
        return _json({"data": self._rows[start:stop]}, self._params)


class _Whole:
    """A request body of the caller's own."""

    def __init__(self, body: Body, params: Params | None) -> None:
        if params:
            raise InputShapeError("params cannot be added to a Body; write them into it")
        self.n_rows = 1
        self._body = body

    def encode(self, start: int, stop: int) -> Encoded:
        content = self._body.content
        if isinstance(content, bytes | bytearray | memoryview):
            return Encoded(self._body.content_type, bytes(content))
        return Encoded(self._body.content_type, _json(content, None).body)


def _frame(frame: Any, params: Params | None) -> Input:
    if not params and len(frame) >= ARROW_ROWS:  # Arrow has no place for params
        table = arrow_table(frame)
        if table is not None:
            return _ArrowTable(table)
    return _Table(*read_frame(frame), params)


def _listed(rows: Sequence[Any], params: Params | None) -> Input:
    if rows and all(map(_is_array, rows)):  # such as images or tensors, one a sample
        arrays = [_array(each) for each in rows]
        if len({(each.shape, each.dtype) for each in arrays}) == 1:
            return _Array(np.stack(arrays), params)
    return _Listed(rows, params)


def _columns(given: Mapping[str, Any], params: Params | None) -> Input:
    """Named columns or tensors; a dict of single values is one row."""
    if not given.keys().isdisjoint(("dataframe_split", "dataframe_records")):
        raise InputShapeError("this dict is a whole request; send it as it is: Body(content)")
    names = [str(name) for name in given]
    values = [_cells(each) for each in given.values()]
    if not any(isinstance(each, list | tuple) for each in values):
        return _Listed([dict(zip(names, values, strict=True))], params)
    lengths = {
        name: len(each) if isinstance(each, list | tuple) else None
        for name, each in zip(names, values, strict=True)
    }
    if len(set(lengths.values())) > 1:
        shown = ", ".join(
            f"{name}: {'no list' if size is None else size}" for name, size in list(lengths.items())[:20]
        )
        raise InputShapeError(f"the columns differ in length ({shown}); expected one value for each row")
    if any(isinstance(cell, list | tuple | dict) or _is_array(cell) for each in values for cell in each):
        # Rows as dicts are taken for nested columns and for tensors of any shape.
        return _Listed([dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)], params)
    return _Table(names, values, params)


def _cells(value: Any) -> Any:
    if hasattr(value, "to_list") or hasattr(value, "to_pylist"):
        return column_values(value)
    if not _is_array(value):
        return value
    array = _array(value)
    _Array(array, None)  # refuses what cannot be sent
    return array_values(array)


def _is_array(value: Any) -> bool:
    has_array = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
    return has_array and not isinstance(value, np.generic)


def _is_image(value: Any) -> bool:
    return hasattr(value, "getbands") and hasattr(value, "convert")


def _can_be_sent(array: NDArray[Any]) -> bool:
    is_wide = array.dtype.kind == "f" and array.itemsize > MAX_ITEM_BYTES
    return array.dtype.kind in "fiubOUSM" and not is_wide


def _with_brightness(image: Any) -> Any:
    """The image itself, unless its values are a palette's indices or bits, which are no brightness."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode not in ("P", "PA"):
        return image
    has_alpha = image.mode == "PA" or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _array(value: Any) -> NDArray[Any]:
    """The NumPy array of another library's array, tensor or image."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # torch
        value = value.detach().cpu()
    if _is_image(value):
        value = _with_brightness(value)
    try:
        if np.ma.isMaskedArray(value):
            value = value.filled(np.nan)  # refused for integers, which have no missing value
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputNotNumericError(
            f"{type(value).__name__} gives no NumPy array: {error}; convert it first, for example to float32"
        ) from None


def _json(document: Any, params: Params | None) -> Encoded:
    if params:
        document = {**document, "params": params}
    try:
        body = _encode_json(document)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputNotNumericError(
            f"cannot write the samples as JSON: {error}; give an array, lists, a dict of columns or a table"
        ) from None
    if b"null" in body and _has_infinity(document):  # JSON has null for both NaN and infinities
        raise InputNotFiniteError("the samples hold an infinity; only finite numbers and NaN can be sent")
    return Encoded(JSON, body)


def _plain(value: Any) -> Any:
    """Convert a value inside lists or dicts for the JSON encoder.

    Raises:
        TypeError: JSON cannot represent it.
    """
    if isinstance(value, np.generic) or _is_array(value):
        array = _array(value)
        if not _can_be_sent(array):
            raise TypeError(f"{array.dtype} is no kind of number")
        return array_values(array)
    if hasattr(value, "isoformat"):  # pandas' times, which have nanoseconds
        text = value.isoformat()
        return None if text == "NaT" else text
    if type(value).__name__ == "NAType":
        return None
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):  # pydantic
        return value.model_dump(mode="json")
    raise TypeError(f"a {type(value).__name__} is no kind of value")


_encode_json = msgspec.json.Encoder(enc_hook=_plain, decimal_format="number").encode


def _has_infinity(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return math.isinf(value)
    if isinstance(value, Mapping):
        return any(map(_has_infinity, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_infinity, value))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return bool(np.isinf(value).any())
    return False
