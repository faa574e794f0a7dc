"""Bodies to numbers: both ways agree on whatever either accepts, and every bad body has its own error."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.contract import TensorContract, skeleton
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
from controller.input import json_numbers

numbers = st.integers() | st.floats() | st.integers(-(2**65), 2**65)
oddities = st.none() | st.booleans() | st.text(max_size=3) | st.dictionaries(st.text(max_size=2), numbers)
trees = st.recursive(numbers | oddities, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
names = st.sampled_from(["data", "inputs", "instances", "date", ""])
documents = st.dictionaries(names, trees, max_size=2) | trees
regular = st.lists(st.integers(1, 4), min_size=1, max_size=4).flatmap(
    lambda shape: st.lists(
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70),
        min_size=int(np.prod(shape)),
        max_size=int(np.prod(shape)),
    ).map(lambda flat: (tuple(shape), flat))
)


def nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if len(shape) == 1:
        return flat
    step = len(flat) // shape[0]
    return [nest(flat[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]


def slow(body: bytes) -> json_numbers.Numbers | InputError:
    try:
        return json_numbers.parse_slow(body)
    except InputError as error:
        return error


@given(documents.map(lambda document: json.dumps(document).encode()))
@example(b'\xef\xbb\xbf{"data": [1]}')
@example('{"data": [1]}'.encode("utf-16"))
@example(b'{"data": [1], "data": [2]}')
@example(b'{"data": [[1], []]}')
@example(b'{"data": [[[]], 1]}')
@example(b'{"data": [-0.0, 5e-324, 1E2]}')
@example(b'{"d\\u0061ta": [1]}')
@example(b'{"data": ' + b"[" * 33 + b"1" + b"]" * 33 + b"}")
def test_what_the_fast_way_accepts_the_slow_way_accepts_with_the_same_numbers(body: bytes) -> None:
    fast = json_numbers.parse_fast(body)
    exact = slow(body)
    if fast is None:
        return
    if isinstance(exact, json_numbers.Numbers):
        assert fast.skeleton == exact.skeleton
        assert fast.values.tobytes() == exact.values.tobytes()
    else:
        # A ragged array passes the fast way; no contract accepts its nesting, and then the slow way explains.
        assert isinstance(exact, InputShapeError)
        assert not any(fast.fit(TensorContract("float32", (size,))) for size in range(1, 13))


@given(st.binary(max_size=60))
@example(b'{"data": [1]}\x00')
@example(b'{"data": [1]} trailing')
@example(b"")
@example(b"[" * 100_000)
@example(b'{"data": ' + b"[" * 100_000)
@example(b'{"data": [' + b"9" * 5000 + b"]}")
@example(b'{"\\ud800": [1]}')
def test_no_body_makes_the_decoder_crash(body: bytes) -> None:
    try:
        parsed = json_numbers.parse(body)
    except InputError:
        return
    assert np.isfinite(parsed.values).all()


@given(regular)
def test_a_regular_array_comes_back_with_its_shape_and_nearest_numbers(
    sample: tuple[tuple[int, ...], list[Any]],
) -> None:
    shape, flat = sample
    parsed = json_numbers.parse(json.dumps({"data": nest(flat, shape)}).encode())
    assert parsed.skeleton == skeleton(shape)
    assert [float(value) for value in parsed.values] == [float(value) for value in flat]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8))
def test_integers_of_64_bits_stay_exact(values: list[int]) -> None:
    contract = TensorContract("int64", (len(values),))
    parsed = json_numbers.parse(json.dumps({"data": values}).encode())
    assert np.frombuffer(json_numbers.to_samples(parsed, contract, 1), "<i8").tolist() == values


BAD_BODIES: list[tuple[bytes, type[InputError], str]] = [
    (b"", BodyNotJsonError, "not JSON"),
    (b"data=1", BodyNotJsonError, "not JSON"),
    (b'{"data": [1,]}', BodyNotJsonError, "at byte"),
    (b'{"data": [01]}', BodyNotJsonError, "at byte"),
    (b'{"data": [1]} x', BodyNotJsonError, "Extra data"),
    (b'{"data": [1]', BodyNotJsonError, "not JSON"),
    (b'{"data": ["\xff"]}', BodyNotJsonError, "not UTF-8"),
    ('{"data": [1]}'.encode("utf-16"), BodyNotJsonError, "not UTF-8"),
    (b'{"data": ' + b"[" * 5000 + b"]" * 5000 + b"}", BodyNotJsonError, "nested too deeply"),
    (b'{"data": [' + b"9" * 5000 + b"]}", BodyNotJsonError, "too many digits"),
    (b"{}", BodyKeyError, '"data", "inputs", "instances"'),
    (b"[1, 2]", BodyKeyError, "exactly one key"),
    (b'"data"', BodyKeyError, "exactly one key"),
    (b"null", BodyKeyError, "exactly one key"),
    (b'{"date": [1]}', BodyKeyError, "exactly one key"),
    (b'{"data": [1], "inputs": [1]}', BodyKeyError, "exactly one key"),
    (b'{"data": [1], "extra": 1}', BodyKeyError, "exactly one key"),
    (b'{"data": [1], "data": [2]}', BodyKeyError, "exactly one key"),
    (b'{"data": 1}', InputShapeError, "an array"),
    (b'{"data": {"0": 1}}', InputShapeError, "an array"),
    (b'{"data": "[1]"}', InputShapeError, "an array"),
    (b'{"data": [[1, 2], [3]]}', InputShapeError, "ragged"),
    (b'{"data": [[1], 2]}', InputShapeError, "ragged"),
    (b'{"data": [[], 1]}', InputShapeError, "ragged"),
    (b'{"data": ' + b"[" * 33 + b"1" + b"]" * 33 + b"}", InputShapeError, "32 dimensions"),
    (b'{"data": ["1"]}', InputNotNumericError, "a string"),
    (b'{"data": [1, null]}', InputNotNumericError, "null"),
    (b'{"data": [true, false]}', InputNotNumericError, "a boolean"),
    (b'{"data": [1, {"a": 1}]}', InputNotNumericError, "an object"),
    (b'{"data": [NaN]}', InputNotFiniteError, "NaN"),
    (b'{"data": [Infinity]}', InputNotFiniteError, "infinity"),
    (b'{"data": [-Infinity]}', InputNotFiniteError, "infinity"),
    (b'{"data": [1e400]}', InputNotFiniteError, "infinity"),
    (b'{"data": [' + b"9" * 400 + b"]}", InputNotFiniteError, "infinity"),
    (b'{"data": []}', InputEmptyError, "no sample"),
    (b'{"data": [[], []]}', InputEmptyError, "no sample"),
]


@pytest.mark.parametrize(
    ("body", "error", "text"), BAD_BODIES, ids=[str(body[:24]) for body, _, _ in BAD_BODIES]
)
def test_a_bad_body_says_what_was_wrong(body: bytes, error: type[InputError], text: str) -> None:
    with pytest.raises(error, match=text) as raised:
        json_numbers.parse_slow(body)
    assert type(raised.value) is error


@pytest.mark.parametrize("key", json_numbers.SAMPLE_KEYS)
def test_each_of_the_three_keys_holds_samples(key: str) -> None:
    assert json_numbers.parse(json.dumps({key: [[1, 2]]}).encode()).values.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        ("float16", 65520.0, InputNotFiniteError),
        ("float16", 65519.0, None),
        ("float32", 3.5e38, InputNotFiniteError),
        ("float32", 3.4028235e38, None),  # how the largest float32 is written
        ("float64", 1.7e308, None),
        ("float32", 1e-50, None),
        ("uint8", 255, None),
        ("uint8", 256, InputNotNumericError),
        ("uint8", -1, InputNotNumericError),
        ("uint8", 0.5, InputNotNumericError),
        ("uint8", 3.0, None),
        ("int64", 2**63 - 1, None),
        ("int64", 2**63, InputNotNumericError),
        ("int64", -(2**63), None),
        ("int64", 1e300, InputNotNumericError),
        ("uint64", 2**64, InputNotNumericError),
        ("uint64", 2**64 - 1, None),
        ("uint64", 2**63 + 1, None),
    ],
)
def test_a_number_that_the_dtype_cannot_hold_is_refused(
    dtype: str, value: float, error: type[InputError] | None
) -> None:
    parsed = json_numbers.parse(json.dumps({"data": [value]}).encode())
    contract = TensorContract(dtype, (1,))
    if error:
        with pytest.raises(error, match=dtype):
            json_numbers.to_samples(parsed, contract, 1)
    else:
        data = json_numbers.to_samples(parsed, contract, 1)
        assert np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))[0] == np.dtype(dtype).type(value)


def test_samples_are_written_in_the_order_in_which_they_came() -> None:
    parsed = json_numbers.parse(b'{"data": [[[1, 2]], [[3, 4]]]}')
    data = json_numbers.to_samples(parsed, TensorContract("float32", (1, 2)), 2)
    assert np.frombuffer(data, "<f4").tolist() == [1, 2, 3, 4]


def test_more_samples_than_the_limit_are_too_large() -> None:
    parsed = json_numbers.parse(b'{"data": [[1], [2], [3]]}')
    with pytest.raises(TooLargeError, match="3 samples in one request; at most 2"):
        json_numbers.to_samples(parsed, TensorContract("float32", (1,)), 2)


def test_numbers_that_do_not_fit_say_what_was_expected() -> None:
    parsed = json_numbers.parse(b'{"data": [1, 2, 3]}')
    with pytest.raises(InputShapeError, match=r"3 numbers .* expected float32 numbers of shape \(n, 2\)"):
        json_numbers.to_samples(parsed, TensorContract("float32", (2,)), 2)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"data": [' + b"[0]," * 100_000 + b'"x"]}', InputNotNumericError),
        (b'{"data": [' + b"{}," * 100_000 + b"1]}", InputNotNumericError),
        (b'{"data": [' + b"0," * 100_000, BodyNotJsonError),
        (b"{" + b'"a":1,' * 100_000 + b'"data":[1]}', BodyKeyError),
        (b'{"data": [NaN,' + b"0," * 100_000 + b"1]}", BodyNotJsonError),
        (b'{"data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", BodyNotJsonError),
    ],
)
def test_a_large_body_is_refused_without_walking_it(
    monkeypatch: pytest.MonkeyPatch, body: bytes, error: type[InputError]
) -> None:
    monkeypatch.setattr(json_numbers, "parse_slow", lambda _: pytest.fail("the body was walked"))
    with pytest.raises(error):
        json_numbers.parse(body)


def test_large_integers_of_a_large_body_stay_exact() -> None:
    for value in (2**53 + 1, -(2**63), 2**64 - 1):
        values = [value] * 10_000
        assert json_numbers.parse(json.dumps({"data": values}).encode()).values.tolist() == values
