"""Reads a request's body as a document: one of the data keys, its value, and the parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Literal

import msgspec
from numpy.lib import format as npy

from app.contract import SHOWN
from app.contract.npy import read_plain_npy
from app.server_errors import (
    BodyKeyError,
    BodyNotArrayError,
    BodyNotJsonError,
    InputError,
    InputShapeError,
    UnsupportedTypeError,
)

# `strict` refuses conversions that change a value; `mlflow` accepts all input of MLflow's scoring server without loss.
Rules = Literal["strict", "mlflow"]
# How a body is read: by rules, or as a request of the Open Inference Protocol, by strict ones.
Reading = Literal["strict", "mlflow", "open_inference"]
FRAMES = ("dataframe_split", "dataframe_records")
KEYS: dict[Rules, tuple[str, ...]] = {
    "strict": ("data", "inputs", "instances", *FRAMES),
    "mlflow": ("inputs", "instances", *FRAMES),
}
SPLIT_KEYS = frozenset({"columns", "data", "index"})
UNIFIED = "unified"  # the key of a document in MLflow's form for chat models: the body is the data, with its parameters
# Each of them marks this form, whose answer is not wrapped either.
UNIFIED_KEYS = ("messages", "prompt", "input")
PARAMS = "params"
MSGPACK = (b"application/msgpack", b"application/x-msgpack")
CSV = "csv"  # the key of a document in CSV format
TABLE = "table"  # the key of a document whose value is columns, by name or in order, and the number of rows
# Keys and images that only the general parser reads. A body of numbers alone has none of them.
GENERAL = re.compile(rb'"(?:(?:dataframe_split|dataframe_records|params|b64)"|data:image\\?/)')
HEADER_ABSENT = re.compile(rb";\s*header\s*=\s*\"?absent", re.IGNORECASE)  # of RFC 4180
ESCAPED_COLON, ESCAPED_COLON_START = re.compile(rb"\\u003[aA]"), rb"\u003"
IMAGES = re.compile(rb'"(?:b64"|data:image\\?/)')


_decode = msgspec.json.Decoder().decode


class Document(msgspec.Struct, frozen=True):
    """A parsed body, not yet compared with a contract.

    Attributes:
        key: One of `KEYS`, `CSV`, `TABLE` or `UNIFIED`.
        value: The value of the key; an array for a NumPy file.
        params: The parameters in the body, or None.
    """

    key: str
    value: Any
    params: Any = None


def read_json(body: bytes, rules: Rules) -> Document:
    """Read a JSON body. `NaN` and infinities are accepted in Python's notation.

    Raises:
        BodyNotJsonError: It is not JSON.
        BodyKeyError: It is not an object with exactly one of the keys.
    """
    document = _parsed(body)
    if rules == "strict":
        _require_names_once(body, document)
    return _document(document, rules)


def _require_names_once(body: bytes, document: Any) -> None:
    """Refuse a name that an object has twice, of which the decoder keeps the last.

    Such a body has more colons than its document has names, and colons within text. Lists of numbers are not visited.
    """
    n_colons, n_found, level = count_colons(body), 0, [document]
    while level and n_found < n_colons:
        objects = [each for each in level if type(each) is dict]
        lists = [each for each in level if type(each) is list]
        inner = [*chain.from_iterable(lists), *chain.from_iterable(each.values() for each in objects)]
        n_found += sum(map(len, objects)) + sum(each.count(":") for each in inner if type(each) is str)
        level = [each for each in inner if type(each) is dict or type(each) is list]
    if n_found < n_colons:
        read_python_json(body, _names_once)


def count_colons(body: bytes) -> int:
    """At least the number of colons of a JSON body: those between a name and its value, and those within text."""
    n_escaped = len(ESCAPED_COLON.findall(body)) if ESCAPED_COLON_START in body else 0
    return body.count(b":") + n_escaped


def _names_once(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise BodyKeyError(f"the body has the key {name[:SHOWN]!r} twice in one object; expected it once")
        seen.add(name)


def _parsed(body: bytes) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return read_python_json(body)


def read_python_json(
    body: bytes,
    pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    expected: str = "a JSON object",
) -> Any:
    """Read JSON as Python does, which knows `NaN` and infinities.

    Args:
        pairs_hook: Takes the members of each object, also those that are there twice.

    Raises:
        BodyNotJsonError: It is not JSON.
    """
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=pairs_hook)
    except (ValueError, RecursionError) as error:
        raise BodyNotJsonError(f"the body is not JSON ({_reason(error)}); expected {expected}") from None


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at byte {error.pos}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else "a number has too many digits"


def read_msgpack(body: bytes) -> Any:
    """Read MessagePack.

    Raises:
        BodyNotArrayError: It is not MessagePack, or holds a value of a type that only its sender knows.
    """
    try:
        return msgspec.msgpack.decode(body, ext_hook=_refuse_extension)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyNotArrayError(f"the body is not MessagePack ({error})") from None


def _refuse_extension(code: int, _: memoryview) -> Any:
    raise BodyNotArrayError(f"the body holds a MessagePack extension of type {code}; expected plain values")


def _document(document: Any, rules: Rules) -> Document:
    keys = KEYS[rules]
    given: Mapping[str, Any] = document if isinstance(document, dict) else {}
    if rules == "mlflow" and any(key in given for key in UNIFIED_KEYS):
        return Document(UNIFIED, given, given)
    found = [key for key in given if key in keys]
    others = [key for key in given if key not in keys and key != PARAMS]
    if len(found) != 1 or (others and rules == "strict"):
        named = ", ".join(f'"{key}"' for key in keys)
        raise BodyKeyError(
            f"expected a JSON object with exactly one key, one of {named}, and optionally params; got "
            + (", ".join(repr(key)[:40] for key in list(given)[:5]) or "none of them")
        )
    return Document(found[0], given[found[0]], given.get(PARAMS))


def malformed(detail: str, rules: Rules) -> InputError:
    """The error for a value that is no table or array at all. MLflow has another error code where one does not fit."""
    return (BodyNotArrayError if rules == "mlflow" else InputShapeError)(detail)


def check_frame(document: Document, rules: Rules) -> None:
    """Refuse the value of a DataFrame form that no contract takes.

    Raises:
        InputError: It has another structure.
    """
    key, value = document.key, document.value
    if key == "dataframe_records" and type(value) is not list:
        raise malformed("dataframe_records must hold a list of objects, one a row", rules)
    if key != "dataframe_split":
        return
    if type(value) is not dict or "data" not in value or value.keys() - SPLIT_KEYS:
        raise malformed(
            'dataframe_split must hold an object with "data", optionally "columns" and "index", and nothing else',
            rules,
        )
    if type(value["data"]) is not list or type(value.get("columns")) not in (list, type(None)):
        raise malformed("data and columns of dataframe_split must be lists", rules)


def read(content_type: bytes, body: bytes, rules: Rules) -> Document:
    """Read a body by its content type.

    Raises:
        UnsupportedTypeError: Its content type is not supported.
        InputError: It does not match its content type.
    """
    kind = content_type.partition(b";")[0].strip().lower()
    if kind in MSGPACK:
        return _document(read_msgpack(body), "strict")
    if kind == b"text/csv":
        if HEADER_ABSENT.search(content_type):
            raise UnsupportedTypeError("text/csv with header=absent is not supported; expected a header row")
        try:
            return Document(CSV, body.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise BodyNotArrayError("the body is not text in UTF-8; expected CSV with a header row") from None
    if kind == b"application/x-npy" or (
        kind == b"application/octet-stream" and body.startswith(npy.MAGIC_PREFIX)
    ):
        return Document(KEYS["strict"][0], read_plain_npy(body))
    if kind == b"application/octet-stream":
        return Document(KEYS["strict"][0], body)
    return read_json(body, rules)
