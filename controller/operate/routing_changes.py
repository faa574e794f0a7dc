"""Logs which version an endpoint chooses, each time it chooses another one and goes on choosing it.

Only the controller with the reconciler's lease writes. It compares with the log itself, so that a restart of
controllers is no change. A version that is only loaded less than its equals at the moment is none either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from app.clock import PoolClock
from app.pool_file import NamedVersion
from app.redis import keys
from app.server_errors import LedgerUnavailableError
from controller.endpoints import Endpoint
from controller.operate.decision_log import CHOSEN, DecisionLog
from controller.pool_snapshot import Snapshot
from modelyard.schemas import Decision

SETTLED_HEARTBEATS = 5  # for so long a version is chosen before it is logged


class RoutingChanges:
    """The background task.

    Args:
        heartbeat_s: Seconds between two looks at the snapshot.
    """

    def __init__(self, decisions: DecisionLog, clock: PoolClock, heartbeat_s: float) -> None:
        self._decisions = decisions
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._logged: dict[str, NamedVersion] | None = None
        self._seen: dict[str, tuple[NamedVersion, float]] = {}

    async def run(self, snapshot: Callable[[], Snapshot], is_in_charge: Callable[[], bool]) -> None:
        """Log changes until cancelled.

        Args:
            snapshot: Returns the present one.
            is_in_charge: Whether this controller writes; one of the pool does.
        """
        while True:
            await asyncio.sleep(self._heartbeat_s)
            if not is_in_charge():
                self._logged = None  # another controller adds to it
                continue
            with suppress(LedgerUnavailableError):  # the next look tries again
                await self._look(snapshot())

    async def _look(self, snapshot: Snapshot) -> None:
        if self._logged is None:
            newest_first = await self._decisions.routing_changes()
            self._logged = {
                each.endpoint: NamedVersion(each.model_name, each.model_version)
                for each in reversed(newest_first)
                if each.model_version is not None
            }
        for name, endpoint in snapshot.endpoints.items():
            change = routing_change(endpoint, self._logged.get(name))
            if change is None:
                self._seen.pop(name, None)
                continue
            chosen, why = change
            seen, since_s = self._seen.get(name, (None, 0.0))
            if seen != chosen:
                self._seen[name] = chosen, time.monotonic()
            elif time.monotonic() - since_s >= SETTLED_HEARTBEATS * self._heartbeat_s:
                await self._log(name, chosen, why)
                self._logged[name] = chosen

    async def _log(self, endpoint: str, chosen: NamedVersion, why: str) -> None:
        await self._decisions.add(
            Decision(
                at_ms=self._clock.now_ms(),
                kind=CHOSEN,
                model_name=chosen.model,
                model_version=chosen.version,
                by="",
                reason=why,
                endpoint=endpoint,
            )
        )


def routing_change(endpoint: Endpoint, before: NamedVersion | None) -> tuple[NamedVersion, str] | None:
    """The version that an endpoint chooses now, and why; None if that is no change.

    Args:
        before: The version that it chose before, if that is known.
    """
    if not endpoint.routes:
        return None
    route = endpoint.routes[0]
    chosen = NamedVersion(route.candidate.model_name, route.candidate.model_version)
    explained = endpoint.explanations[route.decision]
    rival = next(
        (each for each in endpoint.candidates if (each.model_name, each.model_version) == before), None
    )
    is_equal = rival is not None and rival.worker in explained.tied
    if chosen == before or (is_equal and explained.decided_by == "expected_wait"):
        return None
    if before is None:
        return chosen, explained.why
    if rival:
        return chosen, f"instead of {before}: {explained.why}"
    out = next((why.text for queue, why in endpoint.excluded.items() if keys.model_of(queue) == before), None)
    return chosen, f"instead of {before}, which {f'is out ({out})' if out else 'has no ready worker'}"
