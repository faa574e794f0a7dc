from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tenacity import Future, RetryCallState, Retrying

from app import errors
from app.errors import ModelyardError, QueueFullError, UnavailableError
from client import Prediction, RetryPolicy
from client.protocol import encode_samples, error_classes, error_of


def own_classes() -> list[type[ModelyardError]]:
    return [
        kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == "app.errors"
    ]


@pytest.mark.parametrize("kind", own_classes())
def test_every_code_comes_back_as_its_class(kind: type[ModelyardError]) -> None:
    body = msgspec.json.encode({"status": 400, "code": kind.code, "detail": "what was wrong"})
    error = error_of(400, {}, body)
    assert type(error) is kind
    assert error.detail == "what was wrong"


def test_no_two_classes_share_a_code() -> None:
    assert len(error_classes()) == len(own_classes())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(500, ModelyardError), (418, ModelyardError), (429, QueueFullError), (503, UnavailableError)],
)
@pytest.mark.parametrize(
    "body", [b'{"code": "from_the_future"}', b"<html>", b"[]", b"", b"\xff", b'{"code": 5}']
)
def test_unknown_code_falls_back_to_the_status(status: int, kind: type[ModelyardError], body: bytes) -> None:
    error = error_of(status, {}, body)
    assert type(error) is kind
    assert error.detail


@pytest.mark.parametrize(
    ("value", "at_least_s", "at_most_s"),
    [
        ("0", 0, 0),
        ("7", 7, 7),
        ("1.5", 1.5, 1.5),
        ("-3", 0, 0),
        ("nan", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
    ids=["zero", "whole", "fraction", "negative", "nan", "date past"],
)
def test_retry_after_is_read_in_both_forms(value: str, at_least_s: float, at_most_s: float) -> None:
    retry_after_s = error_of(503, {"retry-after": value}, b"").retry_after_s
    assert retry_after_s is not None
    assert at_least_s <= retry_after_s <= at_most_s


def test_retry_after_may_be_a_date_to_come() -> None:
    in_an_hour = formatdate(time.time() + 3600, usegmt=True)
    retry_after_s = error_of(503, {"retry-after": in_an_hour}, b"").retry_after_s
    assert retry_after_s is not None
    assert 3000 <= retry_after_s <= 3600


@pytest.mark.parametrize("value", ["", "soon", "Wed, 99 Foo"])
def test_retry_after_that_says_nothing_is_none(value: str) -> None:
    assert error_of(503, {"retry-after": value}, b"").retry_after_s is None


def failed_attempt(attempt: int, error: Exception) -> RetryCallState:
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt
    state.outcome = Future.construct(attempt, error, has_exception=True)
    return state


@given(attempt=st.integers(1, 2000), retry_after_s=st.none() | st.floats(0, 100))
def test_pause_is_never_shorter_than_asked_and_never_much_longer(
    attempt: int, retry_after_s: float | None
) -> None:
    policy = RetryPolicy(backoff_s=0.1, max_backoff_s=5)
    pause_s = policy.pause_s(failed_attempt(attempt, QueueFullError("full", retry_after_s=retry_after_s)))
    asked_s = retry_after_s or 0
    assert asked_s <= pause_s <= asked_s + min(5, 0.1 * 2 ** min(attempt - 1, 100))


floats = npst.floating_dtypes(sizes=(16, 32, 64), endianness="=")
numbers = floats | npst.integer_dtypes(endianness="=") | npst.unsigned_integer_dtypes(endianness="=")


@given(
    npst.arrays(
        numbers,
        npst.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_array_comes_out_of_its_body_unchanged(array: Any) -> None:
    data = msgspec.json.decode(encode_samples(array))["data"]
    read = np.array(data, dtype=array.dtype)
    np.testing.assert_array_equal(read, array)
    transposed = msgspec.json.decode(encode_samples(array.T))["data"]
    np.testing.assert_array_equal(np.array(transposed, dtype=array.dtype), array.T)


def test_confidence_is_a_probability_whatever_the_scores_are() -> None:
    assert Prediction(predicted=1, scores=(0.1, 0.9)).confidence == 0.9
    assert Prediction(predicted=1, scores=(-1000.0, 1000.0)).confidence == 1.0
    logits = np.array([1.0, 2.0, 3.0])
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert Prediction(predicted=2, scores=(1.0, 2.0, 3.0)).confidence == pytest.approx(softmax[2])
    assert Prediction(predicted=2).confidence is None
