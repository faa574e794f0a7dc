"""The log of routing changes: which version became the chosen one, and why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import redis

from app.pool_file import NamedVersion
from app.redis import keys
from controller.endpoints import DISABLED, Exclusion, ranked_endpoint
from controller.operate.routing_changes import routing_change
from controller.ranking import Candidate
from tests.controller.conftest import HandWorker, Serve, Served
from tests.pool_samples import MODEL, PAIR

HandWorkers = Callable[..., HandWorker]


def candidate(version: int, figure: float | None = None, wait_ms: float = 0.0) -> Candidate:
    return Candidate(
        queue=keys.queue_name(MODEL, version),
        worker=version,
        model_name=MODEL,
        model_version=version,
        figure=figure,
        contract=PAIR,
        live_workers=1,
        dataset_digest="d",
        expected_wait_ms=wait_ms,
    )


def named(version: int) -> NamedVersion:
    return NamedVersion(MODEL, version)


@pytest.mark.parametrize(
    ("candidates", "excluded", "before", "expected"),
    [
        ([candidate(1, 0.9)], {}, None, (named(1), "it is the only candidate")),
        ([candidate(1, 0.9)], {}, named(1), None),
        ([], {}, named(1), None),
        (
            [candidate(1, 0.5), candidate(2, 0.9)],
            {},
            named(1),
            (named(2), f"instead of {MODEL}/1: it has the highest val_accuracy"),
        ),
        ([candidate(1, 0.5)], {}, named(2), (named(1), f"instead of {MODEL}/2, which has no ready worker")),
        (
            [candidate(1, 0.5)],
            {keys.queue_name(MODEL, 2): Exclusion(DISABLED, "disabled: drifts")},
            named(2),
            (named(1), f"instead of {MODEL}/2, which is out (disabled: drifts)"),
        ),
        ([candidate(1, wait_ms=5000.0), candidate(2)], {}, named(1), None),  # equals, and one has more to do
    ],
)
def test_change_is_told_with_its_reason(
    candidates: list[Candidate],
    excluded: dict[str, Exclusion],
    before: NamedVersion | None,
    expected: tuple[NamedVersion, str] | None,
) -> None:
    assert routing_change(ranked_endpoint(MODEL, candidates, excluded), before) == expected


async def logged(served: Served, count: int) -> list[tuple[int, str]]:
    """Version and reason of the routing changes, newest first, once there are so many."""
    found: list[tuple[int, str]] = []
    for _ in range(200):
        listed = (await served.http.get("/decisions")).json()["decisions"]
        found = [(each["model_version"], each["reason"]) for each in listed if each["kind"] == "chosen"]
        if len(found) >= count:
            break
        await asyncio.sleep(0.05)
    return found


async def test_controllers_log_a_change_once_and_another_one_goes_on_from_the_log(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    best, other = hand_worker(2, val_accuracy=0.9), hand_worker(1, val_accuracy=0.8)
    served = await serve()
    await serve()
    assert [version for version, _ in await logged(served, 1)] == [2]
    best.stop()
    assert (await logged(served, 2))[0] == (1, f"instead of {MODEL}/2, which has no ready worker")
    client.set(keys.RECONCILER_LEASE, "gone", px=300)  # any of the controllers may take it then
    hand_worker(3, val_accuracy=0.9)
    other.stop()
    assert [version for version, _ in await logged(served, 3)] == [3, 1, 2]
