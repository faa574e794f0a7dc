"""Measures versions that requests are not given because they would answer too late, so that they come back.

Without requests, such a version could not show that it has become fast again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from app.server_errors import ModelyardError
from controller.pool_snapshot import Snapshot

POLL_S = 0.5
LEAST_PAUSE_S = 2.0
PAUSE_PER_PROBE = 10  # the probes of a slow version take at most a tenth of a worker


def passed_over(snapshot: Snapshot) -> frozenset[str]:
    """Queues of the versions that were better than the one that a request got, but too late for its deadline."""
    return frozenset(
        better.queue
        for endpoint in {**snapshot.by_model, **snapshot.endpoints}.values()
        for route in endpoint.short_deadline_routes.values()
        for better in endpoint.candidates[: endpoint.candidates.index(route.candidate)]
        if better.contract == route.candidate.contract
    )


async def measure(late: set[str], probe: Callable[[str], Awaitable[bool]]) -> None:
    """Run the example of each late version, until cancelled.

    Args:
        late: Queues of versions that were passed over; taken out once they are measured.
        probe: Runs the example of a queue's version as a job.
    """
    due_at_s: dict[str, float] = {}
    while True:
        await asyncio.sleep(POLL_S)
        for queue in [each for each in late if due_at_s.get(each, 0.0) <= time.monotonic()]:
            late.discard(queue)
            begun_s = time.monotonic()
            with suppress(ModelyardError):  # no worker, a full queue: the next probe may succeed
                await probe(queue)
            ended_s = time.monotonic()
            due_at_s[queue] = ended_s + max(LEAST_PAUSE_S, PAUSE_PER_PROBE * (ended_s - begun_s))
