"""The controller's cost of one batch before it is sent to Redis."""

from __future__ import annotations

from typing import Any

import pytest

from app.celery_app import create_celery
from app.ledger import wire
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.settings import Settings
from tests.pool_samples import SIGNER, head, now_ms

N_JOBS = pytest.mark.parametrize("n_jobs", [1, 64])


@N_JOBS
def test_encode_head(benchmark: Any, n_jobs: int) -> None:
    """The head of a batch as msgpack."""
    assert wire.decode_head(benchmark(wire.encode, head(n_jobs))).jobs


def test_new_batch_id(benchmark: Any) -> None:
    """A signed id."""
    assert SIGNER.is_own(benchmark(SIGNER.new_batch_id, now_ms(), 64))


def test_write_message(benchmark: Any) -> None:
    """The Celery message that wakes a worker."""
    messages = WakeUpMessages(write_template(create_celery(Settings(redis_url="redis://localhost"))), "queue")
    assert b"batch" in benchmark(messages.write, "batch")
