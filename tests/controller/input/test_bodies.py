"""Bodies that are not JSON: the same samples as JSON gives, and an error of their own for each bad one."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from app.contract import DTYPES, TensorContract
from app.server_errors import (
    BodyKeyError,
    BodyNotArrayError,
    InputEmptyError,
    InputError,
    InputNotFiniteError,
    InputNotNumericError,
    InputShapeError,
    TooLargeError,
)
from controller.input import bodies, json_numbers
from controller.input.bodies import MSGPACK, NPY, OCTETS
from tests.controller.conftest import HandWorker, Serve
from tests.pool_samples import CONTRACT

PAIRS = TensorContract("float32", (2,))


def saved(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def samples(content_type: bytes, body: bytes, contract: TensorContract, limit: int = 100) -> bytes:
    numbers = bodies.parse(content_type, body).numbers(contract)
    return json_numbers.to_samples(numbers, contract, limit)


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda name: arrays.arrays(
            name,
            st.tuples(st.integers(1, 4), st.just(1), st.integers(1, 3)),
            elements={"allow_nan": False, "allow_infinity": False} if name.startswith("float") else None,
        )
    )
)
def test_every_form_of_body_gives_the_samples_that_were_meant(array: NDArray[Any]) -> None:
    contract = TensorContract(array.dtype.name, array.shape[1:])
    octets = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    for content_type, body in [
        (OCTETS, octets),
        (MSGPACK, msgspec.msgpack.encode({"inputs": octets})),
        (MSGPACK, msgspec.msgpack.encode({"data": array.tolist()})),
        (NPY, saved(array)),
        (OCTETS, saved(array)),
        (NPY + b"; charset=binary", saved(np.asfortranarray(array))),
        (NPY, saved(array.astype(array.dtype.newbyteorder(">")))),
        (NPY, saved(array.reshape(len(array), -1))),
    ]:
        assert bodies.parse(content_type, body).fit(contract)
        assert samples(content_type, body, contract) == octets


@given(
    st.lists(
        st.one_of(
            st.integers(-(2**63), 2**64 - 1),
            st.floats(),
            st.integers(2**53 - 2, 2**53 + 2),
            st.sampled_from([None, True, "1", b"1", {"a": 1}, [1]]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_lists_in_messagepack_are_the_numbers_that_walking_them_finds_or_the_same_error(
    given: list[Any],
) -> None:
    def told(read: Callable[[], bodies.Body]) -> Any:
        try:
            numbers = read()
        except InputError as error:
            return type(error), error.detail
        assert not isinstance(numbers, bodies.Octets)
        return numbers.values.dtype, numbers.values.tolist()

    found = told(lambda: bodies.parse(MSGPACK, msgspec.msgpack.encode({"data": given})))
    assert found == told(lambda: json_numbers.from_list(given))


@given(st.binary(max_size=200), st.sampled_from([NPY, MSGPACK, OCTETS]))
def test_whatever_bytes_come_they_are_samples_or_an_error_of_ours(body: bytes, content_type: bytes) -> None:
    with suppress(InputError):
        assert len(samples(content_type, body, PAIRS)) % 8 == 0


@given(st.integers(0, 90), st.binary(min_size=1, max_size=3))
def test_a_damaged_file_is_samples_or_an_error_of_ours(at: int, damage: bytes) -> None:
    body = bytearray(saved(np.ones((2, 2), np.float32)))
    body[at : at + len(damage)] = damage
    with suppress(InputError):
        assert len(samples(NPY, bytes(body), PAIRS)) % 8 == 0


BIG = saved(np.zeros(2, np.float32)).replace(b"(2,)", b"(9223372036854775807,)")


@pytest.mark.parametrize(
    ("content_type", "body", "error"),
    [
        (OCTETS, b"", InputEmptyError),
        (OCTETS, b"1234567", InputShapeError),
        (OCTETS, np.array([1, np.nan], np.float32).tobytes(), InputNotFiniteError),
        (OCTETS, np.array([1] * 6, np.float32).tobytes(), TooLargeError),
        (NPY, b"", BodyNotArrayError),
        (NPY, b"\x93NUMPY\x03\x00", BodyNotArrayError),
        (NPY, saved(np.ones(2))[:-1], BodyNotArrayError),
        (NPY, BIG, BodyNotArrayError),
        (NPY, saved(np.ones((0, 2))), InputEmptyError),
        (NPY, saved(np.ones(3)), InputShapeError),
        (NPY, saved(np.array([np.inf, 1])), InputNotFiniteError),
        (NPY, saved(np.array([1e300, 1])), InputNotFiniteError),
        (NPY, saved(np.array([True, False])), InputNotNumericError),
        (NPY, saved(np.array(["1", "2"])), InputNotNumericError),
        (NPY, saved(np.float32(1)), InputNotNumericError),
        (MSGPACK, b"\xc1", BodyNotArrayError),
        (MSGPACK, msgspec.msgpack.encode([1, 2]), BodyKeyError),
        (MSGPACK, msgspec.msgpack.encode({"data": [1, 2], "more": 1}), BodyKeyError),
        (MSGPACK, msgspec.msgpack.encode({"data": [1, b"2"]}), InputNotNumericError),
        (MSGPACK, msgspec.msgpack.encode({"data": [1, float("nan")]}), InputNotFiniteError),
        (MSGPACK, msgspec.msgpack.encode({"data": "12"}), InputShapeError),
        (MSGPACK, b"\x81\xa4data" + b"\x91" * 5000 + b"\x01", InputError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_bad_body_has_an_error_of_its_own(
    content_type: bytes, body: bytes, error: type[InputError]
) -> None:
    with pytest.raises(error):
        samples(content_type, body, PAIRS, limit=2)


def test_a_file_that_needs_unpickling_is_refused_unread(tmp_path: Any) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("made").touch, ())

    body = saved(np.array([Evil(), Evil()], object))
    assert pickle.dumps(Evil()) in body or b"|O" in body
    with pytest.raises(BodyNotArrayError):
        samples(NPY, body, PAIRS)
    assert not tmp_path.joinpath("made").exists()


async def test_every_form_of_body_reaches_the_worker(serve: Serve, hand_worker: Any) -> None:
    worker: HandWorker = hand_worker(input=CONTRACT)
    served = await serve()
    digits = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
    forms = [
        (OCTETS, digits.tobytes()),
        (NPY, saved(digits)),
        (MSGPACK, msgspec.msgpack.encode({"data": digits.tobytes()})),
    ]
    for content_type, body in forms:
        answer = await served.post(body, content_type=content_type.decode())
        assert answer.status_code == 202
        assert (await worker.claimed()).data == digits.tobytes()
