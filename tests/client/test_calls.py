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

from modelyard import Job, Prediction, RetryPolicy, errors
from modelyard.calls import error_classes, error_of, result, workers
from modelyard.errors import ModelyardError, NotFoundError, QueueFullError, UnavailableError
from tests.client.conftest import RECEIPT, data_of
from tests.pool_samples import encode_samples


def own_classes() -> list[type[ModelyardError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and kind.__module__ == "modelyard.errors"
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


@pytest.mark.parametrize("body", [b"<h1>Not Found</h1>", b'{"code": "not_found", "detail": "Not Found"}'])
def test_path_that_nothing_answers_is_named_with_what_may_be_wrong(body: bytes) -> None:
    with pytest.raises(
        NotFoundError, match=r"nothing answers GET /workers at this address: .* older controller"
    ):
        workers().read(404, {}, body)


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


@given(attempt=st.integers(1, 2000), retry_after_s=st.none() | st.floats(0, 100))
def test_pause_is_never_shorter_than_asked_and_never_much_longer(
    attempt: int, retry_after_s: float | None
) -> None:
    policy = RetryPolicy(attempts=2001, backoff_s=0.1, max_backoff_s=5, max_retry_after_s=100)
    pause_s = policy.pause_s(attempt, QueueFullError("full", retry_after_s=retry_after_s))
    asked_s = retry_after_s or 0
    assert pause_s is not None
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
    for each in (array, array.T, array.astype(array.dtype.newbyteorder(">"))):
        read = data_of(*encode_samples(each))
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, each)
        in_lists = data_of(*encode_samples(list(each)))
        np.testing.assert_array_equal(np.array(in_lists, array.dtype), each)


def test_confidence_is_a_probability_whatever_the_scores_are() -> None:
    assert Prediction(predicted=1, scores=(0.1, 0.9)).confidence == 0.9
    assert Prediction(predicted=1, scores=(-1000.0, 1000.0)).confidence == 1.0
    logits = np.array([1.0, 2.0, 3.0])
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert Prediction(predicted=2, scores=(1.0, 2.0, 3.0)).confidence == pytest.approx(softmax[2])
    assert Prediction(predicted=2).confidence is None
    assert Prediction(predicted=None, scores=(0.1, None)).confidence is None


def job(predictions: str, **fields: str) -> Job:
    """A succeeded job as the client reads it."""
    receipt = msgspec.json.encode(RECEIPT | {"status": "succeeded"} | fields)
    body = receipt[:-1] + f',"predictions":{predictions}}}'.encode()
    return result("a.0").read(200, {}, body)


def test_numbers_keep_their_dtype_and_every_digit() -> None:
    scores = job(
        '[{"class":0,"scores":[9223372036854775807,-1]},{"class":1,"scores":[0,1]}]', scores_dtype="int64"
    ).scores
    assert scores is not None
    assert (scores.dtype, scores.tolist()) == (np.int64, [[2**63 - 1, -1], [0, 1]])
    shortest = job('[{"class":0,"scores":[0.1,1e-45]}]').scores
    assert shortest is not None
    assert (shortest.dtype, shortest.tolist()) == (np.float32, [[float(np.float32(0.1)), 2.0**-149]])
    assert job('[{"class":3,"scores":null}]').scores is None
    assert job("[]").scores is None


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 9223372036854775807], np.int64),
        ([1, 18446744073709551615], np.uint64),
        ([-1, 0], np.int64),
        ([123456789.25, 1e300], np.float64),
        ([1.0, 2.0], np.float64),
        ([], np.int64),
    ],
)
def test_classes_and_values_are_an_array_that_holds_them_exactly(values: list[float], dtype: type) -> None:
    predictions = ",".join(f'{{"class":{value!r},"scores":null}}' for value in values)
    classes = job(f"[{predictions}]").classes
    assert (classes.dtype, classes.tolist()) == (dtype, values)


def test_an_answer_that_is_no_finite_number_is_none_and_nan_in_an_array() -> None:
    read = job('[{"class":null,"scores":[0.5,null]},{"class":1,"scores":[0.25,0.75]}]')
    assert [each.predicted for each in read.predictions] == [None, 1]
    assert read.scores is not None
    np.testing.assert_array_equal(read.scores, np.array([[0.5, np.nan], [0.25, 0.75]], np.float32))
    np.testing.assert_array_equal(read.classes, [np.nan, 1])
