"""From a request body to the bytes for a worker."""

from __future__ import annotations

from typing import Any

from benchmarks.micro.conftest import CONTRACT
from controller.input import json_numbers


def test_decode_json(benchmark: Any, body: bytes) -> None:
    """The SIMD parser, with the contract check and the cast to float32."""
    assert json_numbers.parse_fast(body) is not None

    def read() -> bytes:
        numbers = json_numbers.parse(body)
        assert numbers.fit(CONTRACT)
        return json_numbers.to_samples(numbers, CONTRACT, 1)

    assert len(benchmark(read)) == 784 * 4


def test_decode_json_the_slow_way(benchmark: Any, body: bytes) -> None:
    """The exact parser, for bodies that the SIMD parser rejects."""
    assert len(benchmark(json_numbers.parse_slow, body).values) == 784
