"""Choosing a queue, and ordering the pool, with few and with many model versions."""

from __future__ import annotations

from typing import Any

import pytest

from app.redis import keys
from app.worker_record import WorkerRecord
from benchmarks.micro.conftest import CONTRACT
from controller.pool_snapshot import build_snapshot
from controller.routing import routes
from controller.selector import Selector
from tests.pool_samples import MODEL, record

POOLS = pytest.mark.parametrize(("n_versions", "n_workers"), [(2, 2), (1000, 2000)])


def workers(n_versions: int, n_workers: int) -> list[WorkerRecord]:
    """Records of a pool, replicas spread evenly."""
    return [
        record(
            version=index % n_versions + 1,
            worker_id=f"host-{index}",
            val_accuracy=0.5 + (index % n_versions) / (2 * n_versions),
            input=CONTRACT,
        )
        for index in range(n_workers)
    ]


def numbers(n_versions: int) -> dict[str, int]:
    """Worker number of each queue."""
    return {keys.queue_name(MODEL, version): version for version in range(1, n_versions + 1)}


@POOLS
@pytest.mark.parametrize("selector", [Selector(), Selector(worker=1), Selector(model=MODEL, version=1)])
def test_route(benchmark: Any, n_versions: int, n_workers: int, selector: Selector) -> None:
    """By the default policy, by worker number, by model and version."""
    snapshot = build_snapshot(workers(n_versions, n_workers), numbers(n_versions), {})
    assert benchmark(routes, snapshot, selector, 30.0)[0].candidate.contract == CONTRACT


@POOLS
def test_build_snapshot(benchmark: Any, n_versions: int, n_workers: int) -> None:
    """The background refresh, without reading Redis."""
    records, by_queue = workers(n_versions, n_workers), numbers(n_versions)
    assert len(benchmark(build_snapshot, records, by_queue, {}).ready_versions) == n_versions
