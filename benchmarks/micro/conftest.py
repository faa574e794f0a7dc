"""Fixtures of the microbenchmarks: a pool in memory, a real Redis, one digit as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from app.contract import TensorContract
from tests.conftest import running_redis

CONTRACT = TensorContract("float32", (1, 28, 28))


@pytest.fixture(scope="session")
def body() -> bytes:
    """One sample as JSON with 4 decimals."""
    sample = np.random.default_rng(0).random((1, 1, 28, 28)).round(4)
    return json.dumps({"data": sample.tolist()}).encode()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A private Redis server with the pool's own configuration."""
    with running_redis() as server:
        yield server.url
