"""Converts a document to the tensors of a contract: nested lists become arrays, with checked shape and type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from math import prod
from typing import Any

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.contract import DTYPES, FREE, SHOWN, TensorField, TensorsContract
from app.contract.column_values import EXACT_INTEGERS, read_number
from app.contract.documents import CSV, Document, Rules, malformed
from app.contract.npy import read_plain_npy
from app.server_errors import (
    InputEmptyError,
    InputError,
    InputNotFiniteError,
    InputShapeError,
    InputTypeError,
)

Array = NDArray[Any]
Tensor = Array | list[Any]  # a list of text
MAX_DIMENSIONS = 32
NONE = type(None)


class Shaped(msgspec.Struct, frozen=True):
    """Values in row-major order, as many as the shape beside them says."""

    shape: tuple[int, ...]
    flat: list[Any]


def read_tensors(document: Document, contract: TensorsContract, rules: Rules) -> list[Array]:
    """The contract's tensors, in the contract's order.

    Raises:
        InputShapeError: One is missing, ragged or of another shape.
        InputTypeError: A value does not have its tensor's type.
        InputNotFiniteError: A number is missing, infinite or overflows, which the contract does not allow.
        InputEmptyError: A tensor is empty.
    """
    values = _values(document, contract)
    return [
        _array(value, field, contract.allows_missing or rules == "mlflow", rules)
        for value, field in zip(values, contract.tensors, strict=True)
    ]


def _values(document: Document, contract: TensorsContract) -> list[Any]:
    """The document's value for each tensor, as nested lists."""
    fields, value = contract.tensors, document.value
    if document.key in ("dataframe_split", "dataframe_records"):
        return _from_frame(document, fields)
    if document.key == CSV:
        raise InputShapeError(f"CSV cannot hold this tensor; expected JSON with {contract.describe()}")
    [first, *others] = fields
    if first.name is None:
        return [value]
    if type(value) is list and value and all(type(each) is dict for each in value):
        return [_stacked(value, str(field.name), field) for field in fields]
    if type(value) is dict:
        for field in fields:
            if field.name not in value:
                raise InputShapeError(f"the tensor {field.name!r} is missing; expected {contract.describe()}")
        return [value[field.name] for field in fields]
    if not others and isinstance(value, list | np.ndarray | bytes):
        return [value]
    raise InputShapeError(
        f"{document.key} must hold an object of tensors, or a list of objects; expected {contract.describe()}"
    )


def _stacked(rows: list[dict[str, Any]], name: str, field: TensorField) -> list[Any]:
    for row, each in enumerate(rows):
        if name not in each:
            raise InputShapeError(f"row {row} lacks the tensor {name!r}; expected {field.describe()}")
    return [each[name] for each in rows]


def _from_frame(document: Document, fields: tuple[TensorField, ...]) -> list[Any]:
    """Tensors from rows: one column per tensor, with numbers or flat lists; an unnamed tensor also from all columns."""
    names, rows = _frame(document)
    [first, *_] = fields
    if first.name is None:
        if len(names) == 1:
            return [_reshaped([row[0] for row in rows], first)]
        return [rows]
    for field in fields:
        if field.name not in names:
            raise InputShapeError(f"the column {field.name!r} is missing; expected {field.describe()}")
    places = {name: place for place, name in enumerate(names)}
    return [_reshaped([row[places[str(field.name)]] for row in rows], field) for field in fields]


def _frame(document: Document) -> tuple[list[str], list[list[Any]]]:
    value = document.value
    if document.key == "dataframe_records":
        if not value or not all(type(each) is dict for each in value):
            raise InputShapeError("dataframe_records must hold a list of objects, one a row")
        names = list(value[0])
        if any(each.keys() != value[0].keys() for each in value):
            raise InputShapeError(
                "the rows of dataframe_records differ in their keys; expected the same in each"
            )
        return names, [[each[name] for name in names] for each in value]
    rows = value["data"]
    rows = [[each] for each in rows] if rows and type(rows[0]) is not list else rows
    given = value.get("columns")
    if given is None:
        given = [str(place) for place in range(len(rows[0]) if rows else 0)]
    for row, each in enumerate(rows):
        if type(each) is not list or len(each) != len(given):
            raise InputShapeError(f"row {row} does not have {len(given)} values, one a column")
    return [str(each) for each in given], rows


def _reshaped(cells: list[Any], field: TensorField) -> Any:
    """Convert the cells of one column to rows of the tensor: a cell with several dimensions is a flat list."""
    if not cells:
        raise InputEmptyError("the body holds no row; expected at least one")
    row_shape = field.shape[1:]
    if FREE in row_shape:
        raise InputShapeError(
            f"rows cannot hold a tensor with free dimensions; expected inputs with {field.describe()}"
        )
    if type(cells[0]) is not list:
        return cells if not row_shape else [[each] for each in cells] if row_shape == (1,) else cells
    return [_nested(each, row_shape) for each in cells]


def _nested(flat: Any, shape: tuple[int, ...]) -> Any:
    if type(flat) is not list or len(shape) < 2 or len(flat) != prod(shape):
        return flat
    step = len(flat) // shape[0]
    return [_nested(flat[at : at + step], shape[1:]) for at in range(0, len(flat), step)]


def _array(value: Any, field: TensorField, allows_missing: bool, rules: Rules) -> Array:
    if type(value) is bytes:
        value = _from_bytes(value, field)
    if isinstance(value, np.ndarray):
        shape: tuple[int, ...] = value.shape
        flat: Any = value.reshape(-1)
    else:
        try:
            shape, flat = flattened(value, field)
        except InputShapeError as ragged:
            raise malformed(ragged.detail, rules) from None
    if len(shape) != len(field.shape) or any(
        size not in (FREE, got) for size, got in zip(field.shape, shape, strict=True)
    ):
        raise InputShapeError(f"got an array of shape {shape}; expected {field.describe()}")
    if not len(flat):
        raise InputEmptyError(f"an array holds no value; expected {field.describe()}")
    try:
        cast = _cast_array if isinstance(flat, np.ndarray) else _cast
        return cast(flat, field, allows_missing, rules).reshape(shape)
    except _Misfit as misfit:
        at = np.unravel_index(misfit.place, shape)
        place = "".join(f"[{int(each)}]" for each in at)
        named = f"tensor {field.name!r}, " if field.name else ""
        error = InputNotFiniteError if misfit.is_about_size else InputTypeError
        wrong = flat[misfit.place].item() if isinstance(flat, np.ndarray) else flat[misfit.place]
        raise error(
            f"{named}row {int(at[0])}, value {place}: got {wrong!r:.{SHOWN}}; expected {misfit.expected}"
        ) from None


def _from_bytes(data: bytes, field: TensorField) -> Array:
    """A NumPy file, or rows in the tensor's dtype, C order, little-endian."""
    if data.startswith(npy.MAGIC_PREFIX):
        return read_plain_npy(data)
    rows, row_shape = (FREE, *field.shape[1:]), field.shape[1:]
    is_plain = field.dtype in DTYPES and FREE not in row_shape
    if not is_plain or len(data) % (np.dtype(field.dtype).itemsize * prod(row_shape)):
        raise InputShapeError(
            f"{len(data)} bytes do not form whole rows; expected {field.describe()}, as a NumPy file, or as "
            "little-endian numbers where only the first dimension is free"
        )
    return np.frombuffer(data, np.dtype(field.dtype).newbyteorder("<")).reshape(rows)


class _Misfit(Exception):  # noqa: N818
    def __init__(self, place: int, expected: str, is_about_size: bool = False) -> None:
        super().__init__(expected)
        self.place = place
        self.expected = expected
        self.is_about_size = is_about_size


def flattened(value: Any, field: TensorField) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and values of nested lists.

    Raises:
        InputShapeError: They are ragged, or nested too deeply.
    """
    if type(value) is Shaped:
        return value.shape, value.flat
    if type(value) is not list:
        raise InputShapeError(f"got a value that is not a list; expected nested lists of {field.describe()}")
    shape, nodes = [len(value)], value
    while nodes and type(nodes[0]) is list:
        if len(shape) == MAX_DIMENSIONS:
            raise InputShapeError(f"the array has more than {MAX_DIMENSIONS} dimensions")
        if set(map(type, nodes)) != {list} or len(set(map(len, nodes))) > 1:
            raise _ragged(field)
        shape.append(len(nodes[0]))
        nodes = list(chain.from_iterable(nodes))
    if list in set(map(type, nodes)):
        raise _ragged(field)
    return tuple(shape), nodes


def _ragged(field: TensorField) -> InputError:
    return InputShapeError(
        f"the array is ragged: all rows of one level must have the same length; expected {field.describe()}"
    )


def _cast_array(flat: Array, field: TensorField, allows_missing: bool, rules: Rules) -> Array:
    """Convert an array: values of the tensor's own dtype stay unchanged, others are treated like JSON numbers."""
    if flat.dtype.newbyteorder("=") != np.dtype(field.dtype):
        return _cast(flat.tolist(), field, allows_missing, rules)
    return _finite(flat, allows_missing) if flat.dtype.kind == "f" else flat


def _cast(flat: list[Any], field: TensorField, allows_missing: bool, rules: Rules) -> Array:
    if field.dtype == "str":
        _require(flat, {str}, "text")
        place = next((place for place, each in enumerate(flat) if each[-1:] == "\0"), None)
        if place is not None:  # NumPy would cut it off
            raise _Misfit(place, "text that does not end in NUL")
        return np.array(flat, object)
    dtype, kinds = np.dtype(field.dtype), set(map(type, flat))
    if rules == "mlflow" and kinds & {str, bool}:
        flat = [_lenient(each, dtype) for each in flat]
        kinds = set(map(type, flat))
    if dtype.kind == "b":
        if rules == "mlflow" and kinds <= {bool, int} and set(flat) <= {0, 1}:
            return np.array(flat, bool)
        _require(flat, {bool}, "true or false")
        return np.array(flat, bool)
    if dtype.kind == "f":
        return _floats(flat, dtype, allows_missing, allows_infinite=rules == "mlflow")
    return _integers(flat, kinds, dtype)


def _lenient(value: Any, dtype: np.dtype[Any]) -> Any:
    """Convert text and booleans to numbers as MLflow does."""
    if type(value) is bool and dtype.kind in "iuf":
        return int(value)
    if type(value) is str and dtype.kind in "iu" and re.fullmatch(r"\s*[+-]?\d{1,20}\s*", value, re.ASCII):
        return int(value)
    if type(value) is str and dtype.kind == "f":
        try:
            return read_number(value)
        except ValueError:
            return value
    return value


def _require(flat: list[Any], allowed: set[type], expected: str) -> None:
    if not set(map(type, flat)) <= allowed:
        place = next(place for place, each in enumerate(flat) if type(each) not in allowed)
        raise _Misfit(place, expected)


def _floats(flat: list[Any], dtype: np.dtype[Any], allows_missing: bool, allows_infinite: bool) -> Array:
    allowed = {float, int, NONE} if allows_missing else {float, int}
    _require(flat, allowed, f"{dtype.name} numbers" + (", or null" if allows_missing else ""))
    try:
        exact = np.array(flat, np.float64)
    except OverflowError:
        place = next(place for place, each in enumerate(flat) if type(each) is int and abs(each) > 2**1023)
        raise _Misfit(place, f"finite {dtype.name} numbers", True) from None
    with np.errstate(over="ignore"):
        cast = exact.astype(dtype, copy=False)
    return _finite(cast, allows_missing, np.isinf(exact) if allows_infinite else None)


def _finite(array: Array, allows_missing: bool, given: Array | None = None) -> Array:
    """The array, unless a number of it is not finite; `given` marks infinities of the request that may stay."""
    is_wrong = np.isinf(array) if allows_missing else ~np.isfinite(array)
    if given is not None:
        is_wrong &= ~given
    if is_wrong.any():
        raise _Misfit(int(is_wrong.argmax()), f"finite {array.dtype.name} numbers", True)
    return array


def _integers(flat: list[Any], kinds: Iterable[type], dtype: np.dtype[Any]) -> Array:
    limits = np.iinfo(dtype)
    expected = f"whole numbers from {limits.min} to {limits.max} ({dtype.name})"
    _require(flat, {int, float}, expected)
    if set(kinds) != {int}:
        flat = [
            int(each) if type(each) is float and each.is_integer() and abs(each) < EXACT_INTEGERS else each
            for each in flat
        ]
        _require(flat, {int}, expected)
    if min(flat) < limits.min or max(flat) > limits.max:
        place = next(place for place, each in enumerate(flat) if not limits.min <= each <= limits.max)
        raise _Misfit(place, expected)
    return np.array(flat, dtype)
