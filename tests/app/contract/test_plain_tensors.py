"""The input contract: which JSON nestings spell samples, and that nothing else does."""

import json
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract import SKELETON_CACHE_SAMPLES, TensorContract, skeleton, spellings

shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
DIGIT = TensorContract("float32", (1, 28, 28))


def nested(shape: tuple[int, ...]) -> bytes:
    return json.dumps(np.zeros(shape, int).tolist(), separators=(",", ":")).encode()


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
def test_a_skeleton_is_the_json_array_without_its_numbers(shape: tuple[int, ...]) -> None:
    assert skeleton(shape) == nested(shape).replace(b"0", b"")


@given(shapes, st.integers(1, SKELETON_CACHE_SAMPLES + 3))
def test_a_contract_accepts_every_spelling_of_whole_samples(shape: tuple[int, ...], n_samples: int) -> None:
    contract = TensorContract("float32", shape)
    for spelling in spellings(shape, n_samples):
        assert prod(spelling) == n_samples * contract.sample_size
        assert contract.accepts(prod(spelling), skeleton(spelling))


@given(shapes, st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple))
def test_a_contract_accepts_no_other_nesting(shape: tuple[int, ...], other: tuple[int, ...]) -> None:
    contract = TensorContract("float32", shape)
    n_samples, rest = divmod(prod(other), contract.sample_size)
    expected = not rest and n_samples > 0 and other in spellings(shape, n_samples)
    assert contract.accepts(prod(other), skeleton(other)) == expected


@pytest.mark.parametrize(
    ("shape", "accepted"),
    [
        ((784,), True),
        ((28, 28), True),
        ((1, 28, 28), True),
        ((1, 1, 28, 28), True),
        ((3, 784), True),
        ((3, 28, 28), True),
        ((3, 1, 28, 28), True),
        ((20, 1, 28, 28), True),
        ((2352,), False),
        ((28, 1, 28), False),
        ((783,), False),
        ((785,), False),
        ((14, 56), False),
        ((1, 3, 28, 28), False),
    ],
)
def test_the_spellings_of_digits(shape: tuple[int, ...], accepted: bool) -> None:
    assert DIGIT.accepts(prod(shape), skeleton(shape)) == accepted


def test_no_number_at_all_is_no_sample() -> None:
    assert not DIGIT.accepts(0, b"[]")


def test_a_contract_describes_itself_to_people() -> None:
    assert DIGIT.describe() == (
        "float32 numbers of shape (n, 1, 28, 28); one sample may also be a flat list of 784 numbers"
    )
