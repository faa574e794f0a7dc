"""Checks the values of one column, or nested values, against their type, and converts them to the wire form.

A valid column costs a few calls, independent of its length; only an invalid one is traversed to find the row.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import math
import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from app.contract import SHOWN, ColumnType
from app.contract.documents import Rules

Values = list[Any]
FLOAT32_OVERFLOW = float(np.finfo(np.float32).max) * (1 + 2.0**-25)
EXACT_INTEGERS = 2**53  # from here on, float64 does not hold every integer
RANGES = {"integer": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}
HAVE_MISSING = frozenset({"float", "double", "string", "datetime"})
NUMBERS = frozenset({int, float})
NONE = type(None)
TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d(?::\d\d(?::\d\d(?:\.\d{1,9})?)?)?))?", re.ASCII)
WHOLE = re.compile(r"\s*[+-]?\d{1,19}\s*", re.ASCII)
YEARS = range(1678, 2262)  # years that 64-bit nanoseconds cover completely
NAT = -(2**63)
# MessagePack's codes, and the NumPy type, of values within lists and objects whose Python type MLflow refuses.
EXTENSIONS = {"datetime": (1, "<M8[ns]"), "float": (2, "<f4"), "integer": (3, "<i4")}
# Characters that NumPy, through which MLflow passes lists, cuts off at the end of a value.
CUT: dict[str, str | bytes] = {"string": "\0", "binary": b"\0"}
_TYPES: dict[str, set[type]] = {
    "boolean": {bool},
    "integer": {int},
    "long": {int},
    "float": {float},
    "double": {float},
    "string": {str},
}
WORDS = {
    "boolean": "true or false",
    "integer": "a whole number from -2147483648 to 2147483647",
    "long": "a whole number from -9223372036854775808 to 9223372036854775807",
    "float": "a finite float32 number",
    "double": "a finite number",
    "string": "text",
    "binary": "bytes as base64",
    "datetime": 'a time without offset, such as "2026-01-31T12:00:00", of the years 1678 to 2261',
    "array": "a list",
    "object": "an object",
    "map": "an object",
}


class Misfit(Exception):  # noqa: N818  # no error: it becomes one where row and column are known
    """A value of a wrong type.

    Args:
        place: Its place within the row's value, such as `.price[2]`; empty for the whole value.
    """

    def __init__(self, value: Any, expected: str, place: str = "", row: int = 0) -> None:
        super().__init__(expected)
        self.value = value
        self.expected = expected
        self.place = place
        self.row = row

    def at(self, where: str) -> str:
        """In words, for error messages."""
        shown = repr(self.value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
        return f"{where}{self.place}: got {shown}; expected {self.expected}"


def convert(values: Values, kind: ColumnType, *, allows_missing: bool, rules: Rules) -> Values:
    """The values in wire form; None for a missing value.

    Args:
        allows_missing: Whether the values may include None, or NaN for numbers.

    Raises:
        Misfit: A value has a wrong type; it names the first such row.
    """
    if is_as_it_travels(values, kind.kind):
        return values
    if (
        allows_missing
        and None in values
        and is_as_it_travels([each for each in values if each is not None], kind.kind)
    ):
        return values
    return _each(values, kind, allows_missing, rules)


def is_as_it_travels(values: Values, kind: str) -> bool:
    """Whether all values already have the type, without a loop over them; also False if one is missing."""
    if kind not in _TYPES or not values or set(map(type, values)) != _TYPES[kind]:
        return False
    if kind == "double":  # the sum of finite numbers may overflow; then each is checked
        return isfinite(sum(values))
    if kind == "float":
        return bool(sum(map(abs, values)) < FLOAT32_OVERFLOW)
    if kind in RANGES:
        low, high = RANGES[kind]
        return bool(low <= min(values) and max(values) <= high)
    return True


def _each(values: Values, kind: ColumnType, allows_missing: bool, rules: Rules) -> Values:
    converted = []
    for row, value in enumerate(values):
        try:
            converted.append(_one(value, kind, allows_missing, rules))
        except Misfit as misfit:
            misfit.row = row
            raise
    return converted


def _one(value: Any, kind: ColumnType, allows_missing: bool, rules: Rules) -> Any:
    name = kind.kind
    if value is None or (type(value) is float and math.isnan(value)):
        if allows_missing or name == "any":
            return None
        raise Misfit(value, f"{WORDS[name]} ({name}), which may not be missing")
    return _CONVERTERS[name](value, kind, rules)


def _boolean(value: Any, kind: ColumnType, rules: Rules) -> Any:
    if type(value) is bool:
        return value
    if rules == "mlflow" and type(value) in NUMBERS and value in (0, 1):
        return bool(value)
    raise _misfit(value, kind)


def _integer(value: Any, kind: ColumnType, rules: Rules) -> Any:
    number = value
    if rules == "mlflow" and (type(value) is bool or (type(value) is str and WHOLE.fullmatch(value))):
        number = int(value)
    if type(number) is float and number.is_integer() and abs(number) < EXACT_INTEGERS:
        number = int(number)
    low, high = RANGES[kind.kind]
    if type(number) is not int or not low <= number <= high:
        raise _misfit(value, kind)
    return number


def read_number(text: str) -> float:
    """A number in text, in the spelling of JSON or CSV. Python also reads `1_0` as 10, and digits of other scripts.

    Raises:
        ValueError: It is none.
    """
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def _float(value: Any, kind: ColumnType, rules: Rules) -> Any:
    number = value
    if rules == "mlflow":
        if type(value) is bool:
            number = float(value)
        elif type(value) is str:
            try:
                number = read_number(value)
            except ValueError:
                raise _misfit(value, kind) from None
    if type(number) not in NUMBERS:
        raise _misfit(value, kind)
    try:
        as_float = float(number)
    except OverflowError:
        raise _misfit(value, kind) from None
    if rules == "mlflow" and (kind.kind == "double" or not math.isfinite(as_float)):
        return as_float
    if not math.isfinite(as_float) or (kind.kind == "float" and abs(as_float) >= FLOAT32_OVERFLOW):
        raise _misfit(value, kind)
    return as_float


def _string(value: Any, kind: ColumnType, rules: Rules) -> Any:
    if type(value) is str or (rules == "mlflow" and type(value) in (int, float, bool)):
        return value
    raise _misfit(value, kind)


def _binary(value: Any, kind: ColumnType, rules: Rules) -> Any:
    if type(value) is bytes:
        return value
    if type(value) is not str:
        raise _misfit(value, kind)
    try:
        return base64.b64decode("".join(value.split()), validate=True)
    except (ValueError, binascii.Error):
        raise _misfit(value, kind) from None


def _time(value: Any, kind: ColumnType, rules: Rules) -> Any:
    """Nanoseconds since 1970."""
    if rules == "mlflow" and type(value) is int and NAT < value < -NAT:
        return value
    if type(value) is dt.datetime and value.tzinfo is None:  # MessagePack may contain such a value
        value = value.isoformat()
    elif type(value) is np.datetime64:  # Arrow and Parquet do
        value = str(value)
    found = TIME.fullmatch(value) if type(value) is str else None
    if not found or int(value[:4]) not in YEARS:
        raise _misfit(value, kind)
    try:
        return int(np.datetime64("T".join(part for part in found.groups() if part), "ns").astype(np.int64))
    except ValueError:  # such as the 31st of February
        raise _misfit(value, kind) from None


def _array(value: Any, kind: ColumnType, rules: Rules) -> Any:
    if type(value) is not list:
        raise _misfit(value, kind)
    assert kind.items
    return _nested(value, kind.items, rules)


def _nested(values: Values, kind: ColumnType, rules: Rules) -> Values:
    try:
        converted = convert(values, kind, allows_missing=False, rules=_within(kind, rules))
        if kind.kind in CUT:
            _require_no_end_in_nul(converted, kind)
    except Misfit as misfit:
        misfit.place = f"[{misfit.row}]{misfit.place}"
        raise
    return [_nested_leaf(each, kind) for each in converted] if kind.kind in EXTENSIONS else converted


def _require_no_end_in_nul(values: Values, kind: ColumnType) -> None:
    for row, value in enumerate(values):
        if value[-1:] == CUT[kind.kind]:
            raise Misfit(value, f"{WORDS[kind.kind]} ({kind.kind}) that does not end in NUL", row=row)


def _within(kind: ColumnType, rules: Rules) -> Rules:
    """The rules within lists and objects. In columns of text MLflow keeps numbers; within values it refuses them."""
    return "strict" if kind.kind == "string" else rules


def _nested_leaf(value: Any, kind: ColumnType) -> msgspec.msgpack.Ext:
    code, dtype = EXTENSIONS[kind.kind]
    return msgspec.msgpack.Ext(code, np.array(value, dtype).tobytes())


def _map(value: Any, kind: ColumnType, rules: Rules) -> Any:
    if type(value) is not dict:
        raise _misfit(value, kind)
    assert kind.items
    return {name: _member(name, each, kind.items, False, rules) for name, each in value.items()}


def _object(value: Any, kind: ColumnType, rules: Rules) -> Any:
    if type(value) is not dict:
        raise _misfit(value, kind)
    known = {each.name: each for each in kind.properties}
    for name in value:
        if name not in known:
            raise Misfit(value[name], f"no property of this name, but {kind.describe()}", f".{name}")
    for each in kind.properties:
        if each.required and each.name not in value:
            raise Misfit(value, f"{kind.describe()}; its property {each.name} is missing")
    return {
        name: _member(name, each, known[name].type, not known[name].required, rules)
        for name, each in value.items()
    }


def _member(name: str, value: Any, kind: ColumnType, allows_missing: bool, rules: Rules) -> Any:
    try:
        converted = _one(value, kind, allows_missing, _within(kind, rules))
    except Misfit as misfit:
        misfit.place = f".{name}{misfit.place}"
        raise
    return _nested_leaf(converted, kind) if kind.kind in EXTENSIONS and converted is not None else converted


def _misfit(value: Any, kind: ColumnType) -> Misfit:
    return Misfit(value, f"{WORDS[kind.kind]} ({kind.kind})")


_CONVERTERS: dict[str, Callable[[Any, ColumnType, Rules], Any]] = {
    "boolean": _boolean,
    "integer": _integer,
    "long": _integer,
    "float": _float,
    "double": _float,
    "string": _string,
    "binary": _binary,
    "datetime": _time,
    "array": _array,
    "map": _map,
    "object": _object,
    "any": lambda value, kind, rules: value,
}
