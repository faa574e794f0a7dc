"""A number that is sent reaches the model as it was written, in the contract's dtype, or is refused with 422."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract import DTYPES, TensorContract
from app.server_errors import InputError, InputNotFiniteError, InputNotNumericError
from controller.http.problems import status_of
from controller.input import bodies, json_numbers
from controller.input.bodies import JSON, MSGPACK, NPY

LITERALS = [
    "0", "-0", "-0.0", "1", "1.0", "1.5e3", "1e3", "1E+3", "0.5", "-1", "127", "128", "-129", "255", "256", "65504",
    "65520", "16777217", "4294967295", "4294967296",
    "9007199254740991", "9007199254740992", "9007199254740993", "9007199254740993.0", "9.007199254740993e15",
    "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "9223372036854775807.0", "18446744073709551615", "18446744073709551616", "1e18", "1e19", "3.5e38", "1e-50",
    "1e308", "1e400", "-1e400",
]  # fmt: skip
MIXED = [
    ["9007199254740993", "1.0"],
    ["1.0", "-9007199254740993"],
    ["18446744073709551615", "0.0"],
    ["18446744073709551615", "-1"],
    ["9223372036854775807", "1"],
    ["18446744073709551615", "1"],
    ["9007199254740991", "1.0"],
    ["9007199254740993", "0.5"],
]
NOT_NUMBERS = [
    "NaN",
    "Infinity",
    "-Infinity",
    '"1"',
    "true",
    "null",
    "{}",
    '"NaN"',
    "01",
    "+1",
    ".5",
    "0x10",
    "1_0",
]


def samples(content_type: bytes, body: bytes, contract: TensorContract) -> list[Any]:
    """The numbers that the model gets."""
    numbers = bodies.parse(content_type, body).numbers(contract)
    data = json_numbers.to_samples(numbers, contract, 100)
    got: list[Any] = np.frombuffer(data, json_numbers.little_endian(contract.dtype)).tolist()
    return got


def expected(numbers: list[Any], dtype: str) -> list[Any] | None:
    """What Python's exact arithmetic says of these numbers in a dtype; None where it does not hold them."""
    if dtype.startswith("float"):
        with np.errstate(over="ignore"):
            rounded = [np.array(number).astype(dtype).item() for number in numbers]
        return rounded if np.isfinite(rounded).all() else None
    limits = np.iinfo(dtype)
    exact = [Fraction(*number.as_integer_ratio()) for number in numbers]
    fits = all(each.denominator == 1 and limits.min <= each <= limits.max for each in exact)
    return [int(each) for each in exact] if fits else None


def check(
    content_type: bytes,
    body: bytes,
    dtype: str,
    numbers: list[Any],
    may_refuse: bool = False,
    sample_size: int | None = None,
) -> None:
    """A body's numbers come out as they are, or are refused with 422 where the dtype does not hold them."""
    wanted = expected(numbers, dtype)
    got: list[Any] | None = None
    refusal: InputError | None = None
    try:
        got = samples(content_type, body, TensorContract(dtype, (sample_size or len(numbers),)))
    except (InputNotNumericError, InputNotFiniteError) as error:
        refusal = error
    if refusal:
        assert wanted is None or may_refuse, f"{numbers} were refused: {refusal}"
        assert status_of(refusal) == 422
        assert dtype in refusal.detail or "infinity" in refusal.detail
        return
    assert got == wanted
    if dtype.startswith("float"):
        assert np.signbit(np.array(got)).tolist() == [bool(np.signbit(float(number))) for number in numbers]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("texts", [*[[each] for each in LITERALS], *MIXED], ids=",".join)
def test_a_json_number_is_exact_or_refused(texts: list[str], dtype: str) -> None:
    body = f'{{"data": [{", ".join(texts)}]}}'.encode()
    written = [Fraction(text) for text in texts]
    if any(abs(number) > json_numbers.MAX_FLOAT for number in written):
        with pytest.raises(InputNotFiniteError):
            samples(JSON, body, TensorContract(dtype, (len(texts),)))
        return
    is_integer_array = all(text.lstrip("-").isdigit() for text in texts)
    # Python reads the integers of an array exactly, and everything in one with fractions or exponents as float64.
    numbers = [json.loads(text) for text in texts]
    may_refuse = not is_integer_array and max(map(abs, written)) >= 2**53
    if dtype.startswith("float") and not is_integer_array:
        numbers = [float(number) for number in numbers]
    elif not dtype.startswith("float"):
        numbers = [int(number) if number.denominator == 1 else number for number in written]
    check(JSON, body, dtype, numbers, may_refuse)


@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_what_is_no_number_in_json_is_refused(text: str) -> None:
    for dtype in ("float64", "int64"):
        with pytest.raises(InputError) as raised:
            samples(JSON, f'{{"data": [1, {text}]}}'.encode(), TensorContract(dtype, (2,)))
        assert status_of(raised.value) in (400, 422)


@pytest.mark.parametrize("dtype", DTYPES)
@given(values=st.lists(st.integers(-(2**64), 2**65) | st.floats(allow_nan=False), min_size=1, max_size=4))
def test_any_mix_of_numbers_is_exact_or_refused(dtype: str, values: list[Any]) -> None:
    if not np.isfinite([float(value) for value in values]).all():
        return
    may_refuse = max(abs(value) for value in values) >= 2**53 and any(
        type(value) is float for value in values
    )
    numbers = values
    if dtype.startswith("float") and may_refuse:
        numbers = [float(value) for value in values]  # nearest, and then nearest in the dtype
    elif dtype.startswith("float") and not all(-(2**63) <= value < 2**64 for value in values):
        numbers = [float(value) for value in values]
    check(JSON, json.dumps({"data": values}).encode(), dtype, numbers, may_refuse)
    if all(type(value) is float or -(2**63) <= value < 2**64 for value in values):
        check(MSGPACK, msgspec.msgpack.encode({"data": values}), dtype, numbers, may_refuse)


SAVED: list[Any] = [
    np.array([0.1, -0.0, 1e-50]),
    np.array([1e300, 1.0]),
    np.array([2.0**60, 2.0**53]),
    np.array([2.0**63]),
    np.array([-(2.0**63)]),
    np.array([2.0**64]),
    np.array([0.5, 1]),
    np.array([2**53 + 1, -(2**63), 2**63 - 1]),
    np.array([2**64 - 1, 2**63], np.uint64),
    np.array([255, 0], np.uint8),
    np.array([-128, 127], np.int8),
    np.array([0.1, 65504], np.float16),
    np.array([0.1, 16777216], np.float32),
    np.array([2**53 + 1, 1], np.longdouble),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("array", SAVED, ids=lambda array: f"{array.dtype.name}{array.tolist()}")
def test_a_numpy_file_of_any_dtype_and_order_is_exact_or_refused(array: Any, dtype: str) -> None:
    numbers = [number if array.dtype.kind == "f" else int(number) for number in array]
    columns = np.asfortranarray(np.stack([array, array[::-1]]))
    for written, meant in (
        (array, numbers),
        (array.astype(array.dtype.newbyteorder(">")), numbers),
        (columns, [*numbers, *numbers[::-1]]),
    ):
        file = io.BytesIO()
        np.save(file, written)
        check(NPY, file.getvalue(), dtype, meant, sample_size=len(numbers))


@pytest.mark.parametrize("array", [np.array([True, False]), np.array([1j, 0]), np.array(["1", "2"])])
def test_a_numpy_file_of_something_else_is_refused(array: Any) -> None:
    file = io.BytesIO()
    np.save(file, array)
    with pytest.raises(InputNotNumericError):
        samples(NPY, file.getvalue(), TensorContract("float64", (2,)))
