"""Parses a request body into numbers, with two parsers that must agree.

`parse_fast` reads JSON with SIMD directly into a float64 buffer, without a Python object per number, and checks the
nesting by the body's *skeleton* (its brackets and commas). Bodies that it cannot verify go to `parse_slow`, which
traverses Python objects, accepts the same bodies and reports the exact error for others.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np
import simdjson
from numpy.typing import NDArray

from app.contract import TensorContract, skeleton
from app.contract.column_values import EXACT_INTEGERS
from app.contract.documents import read_python_json
from app.contract.tensors import MAX_DIMENSIONS
from app.server_errors import (
    BodyKeyError,
    BodyNotJsonError,
    InputEmptyError,
    InputError,
    InputNotFiniteError,
    InputNotNumericError,
    InputShapeError,
    TooLargeError,
)

SAMPLE_KEYS = ("data", "inputs", "instances")
MAX_FLOAT = sys.float_info.max
# Traversing Python objects takes about two seconds per MiB: larger bodies are refused without the exact reason.
EXPLAINED_BYTES = 64 * 2**10
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))
_KINDS = {str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes"}
# It keeps ten times the memory of the largest document that it has read. New memory for each large body would cost more
# than parsing it. Large bodies are read by processes that end when they are idle (`large_bodies`).
_parser = simdjson.Parser()


class Numbers(msgspec.Struct, frozen=True):
    """The numbers of a body and their nesting.

    Attributes:
        values: float64, or int64 or uint64 to keep integers exact, shape (n_values,).
        skeleton: Brackets and commas of the array.
        largest: The largest magnitude among the numbers.
    """

    values: NDArray[Any]
    skeleton: bytes
    largest: float

    def fit(self, contract: TensorContract) -> bool:
        """Whether they spell whole samples of the contract."""
        return contract.accepts(len(self.values), self.skeleton)

    def numbers(self, contract: TensorContract) -> Numbers:
        """The numbers, unchanged.

        Raises:
            InputNotNumericError: The contract requires integers, and float64 may not represent one exactly.
        """
        if self.largest >= EXACT_INTEGERS and self.values.dtype.kind == "f" and not contract.is_float:
            raise _not_whole(little_endian(contract.dtype))
        return self


def parse(body: bytes) -> Numbers:
    """Read `{"data": […]}` (or `inputs`, `instances`).

    Raises:
        BodyNotJsonError: The body is not JSON.
        BodyKeyError: It is not an object with exactly one of the keys.
        InputNotNumericError: Something in the array is not a number.
        InputNotFiniteError: A number is NaN or infinite.
        InputShapeError: The array is ragged, or not an array.
        InputEmptyError: The array contains no number.
    """
    numbers = parse_fast(body)
    if numbers is None and len(body) > EXPLAINED_BYTES:
        raise _unexplained(body)
    return numbers or parse_slow(body)


def parse_fast(body: bytes) -> Numbers | None:
    """The fast parser; None if the slow parser must read the body."""
    document: Any = None
    try:
        document = _parser.parse(body)
        (key,) = document
        if key not in SAMPLE_KEYS:
            return None
        array = document[key]
        values = np.frombuffer(array.as_buffer(of_type="d"), np.float64)
        magnitudes = np.abs(values)
        # By index: that takes a third of the time of max() for a small array.
        largest = float(magnitudes[magnitudes.argmax()])
        if largest >= EXACT_INTEGERS:
            values = _exact(array, values)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError):
        return None
    finally:
        array = document = None  # the parser cannot be reused while one of its documents is alive
    return Numbers(values, body.translate(None, _NOT_STRUCTURE), largest)


def _exact(array: Any, values: NDArray[Any]) -> NDArray[Any]:
    """The same numbers as integers, if all are integers; float64 cannot represent every integer of this size."""
    for of_type, dtype in (("i", np.int64), ("u", np.uint64)):
        with suppress(ValueError, TypeError, RuntimeError):
            return np.frombuffer(array.as_buffer(of_type=of_type), dtype)
    return values


def _unexplained(body: bytes) -> InputError:
    """Why a large body is refused, found without a traversal, which would block the event loop."""
    document: Any = None
    try:
        document = _parser.parse(body)
        names = list(document.keys())
    except (ValueError, AttributeError, RuntimeError):
        return BodyNotJsonError('the body is not JSON; expected {"data": [numbers]} as application/json')
    finally:
        document = None
    if len(names) != 1 or names[0] not in SAMPLE_KEYS:
        return _wrong_keys()
    return InputNotNumericError(
        f"the array holds a value that is not a number; a body of at most {EXPLAINED_BYTES} bytes is told which"
    )


def parse_slow(body: bytes) -> Numbers:
    """The exact parser: the same results as `parse_fast` for bodies that it accepts, and errors for the others."""
    return from_list(_sample_array(body))


def from_list(array: Any) -> Numbers:
    """Numbers from nested lists.

    Raises:
        InputError: It contains any other value.
    """
    if not isinstance(array, list) or isinstance(array, _Pairs):
        raise InputShapeError("the samples must be an array of numbers, nested or flat")
    flat: list[float] = []
    shape = _walk(array, flat, 0)
    if not flat:
        raise InputEmptyError("the array holds no sample; expected at least one")
    return Numbers(_as_array(flat), skeleton(shape), max(map(abs, flat)))


class Values(Protocol):
    """Numbers of a body, in any format."""

    @property
    def values(self) -> NDArray[Any]:
        """The numbers, shape (n_values,)."""

    @property
    def largest(self) -> float:
        """The largest magnitude among them."""

    def fit(self, contract: TensorContract) -> bool:
        """Whether they spell whole samples of the contract."""


def to_samples(numbers: Values, contract: TensorContract, max_samples: int) -> bytes:
    """The samples in the worker's format: the contract's dtype, C order, little-endian.

    Raises:
        InputShapeError: They do not form whole samples.
        TooLargeError: There are more than `max_samples`.
        InputNotFiniteError: A number overflows the dtype.
        InputNotNumericError: The contract requires integers, and a number is not an integer or is out of range.
    """
    if not numbers.fit(contract):
        raise InputShapeError(
            f"{len(numbers.values)} numbers in this nesting do not fit the model; expected {contract.describe()}"
        )
    n_samples = len(numbers.values) // contract.sample_size
    if n_samples > max_samples:
        raise TooLargeError(f"{n_samples} samples in one request; at most {max_samples} are accepted")
    return _cast(numbers, little_endian(contract.dtype)).tobytes()


@lru_cache(maxsize=64)
def little_endian(name: str) -> np.dtype[Any]:
    """The dtype in the byte order of the wire format."""
    return np.dtype(name).newbyteorder("<")


@lru_cache(maxsize=64)
def _overflow(dtype: np.dtype[Any]) -> float:
    """The smallest magnitude that rounds to infinity: half a unit in the last place beyond the largest number."""
    info = np.finfo(dtype)
    return float(info.max) + 2.0 ** (info.maxexp - info.nmant - 2)


def _cast(numbers: Values, dtype: np.dtype[Any]) -> NDArray[Any]:
    values = numbers.values
    if dtype.kind == "f":
        if numbers.largest >= _overflow(dtype):
            raise InputNotFiniteError(
                f"a number is too large for {dtype.name}; expected finite {dtype.name} numbers"
            )
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    is_whole = values.dtype.kind in "iu" or bool((values == np.floor(values)).all())
    # Compared as Python integers: in float64 the largest int64 equals its successor.
    if not is_whole or int(values.min()) < limits.min or int(values.max()) > limits.max:
        raise _not_whole(dtype)
    return values.astype(dtype)


def _not_whole(dtype: np.dtype[Any]) -> InputNotNumericError:
    limits = np.iinfo(dtype)
    return InputNotNumericError(
        f"expected whole numbers from {limits.min} to {limits.max} ({dtype.name}); if one is 2**53 or more, "
        f"write all numbers of the array without fraction or exponent"
    )


def _as_array(flat: list[float]) -> NDArray[Any]:
    low, high = min(flat), max(flat)
    if max(-low, high) >= EXACT_INTEGERS and all(type(value) is int for value in flat):
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return np.array(flat, dtype=dtype)
    return np.array(flat, dtype=np.float64)


def _sample_array(body: bytes) -> Any:
    pairs = read_python_json(body, _Pairs, '{"data": [numbers]} as application/json')
    names = [name for name, _ in pairs] if isinstance(pairs, _Pairs) else []
    if len(names) != 1 or names[0] not in SAMPLE_KEYS:
        raise _wrong_keys()
    return pairs[0][1]


def _wrong_keys() -> BodyKeyError:
    return BodyKeyError(
        "expected a JSON object with exactly one key, one of " + ", ".join(f'"{key}"' for key in SAMPLE_KEYS)
    )


class _Pairs(list[tuple[str, Any]]):
    """A JSON object that keeps its duplicate keys."""


def _walk(node: Any, flat: list[float], depth: int) -> tuple[int, ...]:
    """Append the numbers below `node` to `flat`; return its shape."""
    if type(node) is float or type(node) is int:
        if not abs(node) <= MAX_FLOAT:  # comparisons with NaN are false
            raise InputNotFiniteError("the array holds NaN or an infinity; expected finite numbers")
        flat.append(node)
        return ()
    if not isinstance(node, list) or isinstance(node, _Pairs):
        kind = _KINDS.get(type(node), "an object")
        raise InputNotNumericError(f"the array holds {kind}; expected numbers only")
    if depth == MAX_DIMENSIONS:
        raise InputShapeError(f"the array has more than {MAX_DIMENSIONS} dimensions")
    shapes = {_walk(child, flat, depth + 1) for child in node}
    if len(shapes) > 1:
        raise InputShapeError("the array is ragged: all rows of one level must have the same length")
    return (len(node), *shapes.pop()) if shapes else (0,)
