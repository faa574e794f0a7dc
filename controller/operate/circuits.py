"""The circuit breaker: a version whose jobs keep failing is not chosen until its example succeeds again.

Each controller judges by the outcomes of its own jobs and by the records of workers, so no decision has to be agreed
on. Requests that name the version or its worker still reach it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from app.clock import PoolClock
from app.redis import keys
from app.server_errors import ModelyardError
from app.settings import ControllerSettings
from app.worker_record import WorkerRecord
from controller.endpoints import CIRCUIT_OPEN, Exclusion
from controller.events import Completed
from controller.operate.decision_log import DecisionLog
from controller.recovery.replay_buffer import QUARANTINED
from modelyard.schemas import Decision

logger = logging.getLogger(__name__)
POLL_S = 0.5
LONGEST_PAUSE_S = 300.0
LEAST_JOBS = 20  # of a window, before its rate of failures counts
# Serving processes of every worker of a version, since a forward pass last ended well: what `MOST_QUARANTINED` jobs of
# one batch cost. It is counted besides, as jobs that wait behind them expire, and a batch ends with its last job.
MOST_DEATHS = 7
MOST_DEATHS_ON_TRIAL = 3
MOST_QUARANTINED = 3  # jobs in a row: each one has cost several workers their lives, and its caller the time


@dataclass(slots=True)
class Circuit:
    """A controller's record of the outcomes of one queue.

    Attributes:
        in_a_row: Failed jobs since the last one that succeeded.
        quarantined: Those of them whose worker died or hung each time they ran.
        window: Jobs and failed jobs of the last batches.
        pause_s: Time between two probes; 0 if the circuit has not been open. One that has closed is on trial: it opens
            again after one quarantined job, for twice the time, until `LEAST_JOBS` jobs have not opened it.
        probe_at_s: When the next probe is due, `time.monotonic()`.
        why: What opened it, for people; empty while it is closed.
        closed_at_ms: When its example succeeded, Redis's clock; 0 if it has not been open.
    """

    in_a_row: int = 0
    quarantined: int = 0
    window: deque[tuple[int, int]] = field(default_factory=deque)
    pause_s: float = 0.0
    probe_at_s: float = 0.0
    why: str = ""
    closed_at_ms: float = 0.0


class Circuits:
    """Observes outcomes, and opens and closes circuits."""

    def __init__(self, settings: ControllerSettings, clock: PoolClock, decisions: DecisionLog) -> None:
        self._in_a_row = settings.circuit_failures
        self._window_jobs = settings.circuit_window_jobs
        self._rate = settings.circuit_failure_fraction
        self._first_pause_s = settings.circuit_pause_s
        self._clock = clock
        self._decisions = decisions
        self._circuits: dict[str, Circuit] = {}
        self._opened: list[str] = []

    def completed(self, event: Completed) -> None:
        """Count the failures of a batch."""
        jobs = event.outcome.jobs
        n_failed = event.n_version_failures
        circuit = self._circuits.get(event.head.queue)
        if circuit is None:
            if not n_failed:
                return  # most queues never fail
            circuit = self._circuits[event.head.queue] = Circuit()
        n_ran = n_failed + sum(job.status == "succeeded" for job in jobs)
        if circuit.why or not n_ran:
            return
        n_quarantined = sum(job.error_code == QUARANTINED for job in jobs)
        circuit.in_a_row = circuit.in_a_row + n_failed if n_failed == n_ran else 0
        circuit.quarantined = circuit.quarantined + n_quarantined if n_failed == n_ran else 0
        circuit.window.append((n_ran, n_failed))
        while len(circuit.window) > 1 and sum(n for n, _ in circuit.window) > self._window_jobs:
            circuit.window.popleft()
        n_jobs, n_bad = (sum(counts) for counts in zip(*circuit.window, strict=True))
        most_quarantined = 1 if circuit.pause_s else MOST_QUARANTINED
        if circuit.in_a_row >= self._in_a_row:
            self._open(event.head.queue, circuit, f"{circuit.in_a_row} jobs in a row failed")
        elif circuit.quarantined >= most_quarantined:
            again = "a job killed its workers again"
            why = f"{circuit.quarantined} jobs in a row killed their workers"
            self._open(event.head.queue, circuit, again if circuit.quarantined == 1 else why)
        elif n_jobs >= LEAST_JOBS and n_bad >= self._rate * n_jobs:
            self._open(event.head.queue, circuit, f"{n_bad} of its last {n_jobs} jobs failed")
        elif n_jobs >= LEAST_JOBS:
            circuit.pause_s = 0.0

    def read(self, records: Iterable[WorkerRecord]) -> None:
        """Count the deaths of serving processes that the records of workers tell of."""
        deaths: dict[str, int] = {}
        for each in records:
            circuit = self._circuits.get(each.queue)
            if each.state == "ready" and not (circuit and each.heartbeat_at_ms <= circuit.closed_at_ms):
                deaths[each.queue] = min(deaths.get(each.queue, each.deaths_in_a_row), each.deaths_in_a_row)
        for queue, n_deaths in deaths.items():
            if n_deaths < MOST_DEATHS_ON_TRIAL:
                continue
            circuit = self._circuits.setdefault(queue, Circuit())
            if not circuit.why and n_deaths >= (MOST_DEATHS_ON_TRIAL if circuit.pause_s else MOST_DEATHS):
                self._open(queue, circuit, f"its workers died {n_deaths} times in a row while they ran jobs")

    def exclusions(self, queues: Iterable[str]) -> Iterator[tuple[str, Exclusion]]:
        """Queues with an open circuit, and why."""
        for queue in queues:
            circuit = self._circuits.get(queue)
            if circuit and circuit.why:
                yield queue, Exclusion(CIRCUIT_OPEN, circuit.why)

    async def run(self, refresh: Callable[[], None], probe: Callable[[str], Awaitable[bool]]) -> None:
        """Probe versions whose circuit is open, until cancelled.

        Args:
            refresh: Has routing read the exclusions again.
            probe: Runs the example of a queue's version as a job; True if it succeeded.
        """
        while True:
            await asyncio.sleep(POLL_S)
            opened, self._opened = self._opened, []
            for queue in opened:
                refresh()
                await self._log(queue, "circuit_opened", self._circuits[queue].why)
            for queue, circuit in list(self._circuits.items()):
                if (
                    circuit.why
                    and circuit.probe_at_s <= time.monotonic()
                    and await self._try(circuit, probe(queue))
                ):
                    self._circuits[queue] = Circuit(
                        pause_s=circuit.pause_s, closed_at_ms=self._clock.now_ms()
                    )
                    refresh()
                    await self._log(queue, "circuit_closed", "its example succeeded")

    def _open(self, queue: str, circuit: Circuit, why: str) -> None:
        circuit.why, circuit.pause_s = why, min(2 * circuit.pause_s, LONGEST_PAUSE_S) or self._first_pause_s
        circuit.probe_at_s = time.monotonic() + circuit.pause_s
        self._opened.append(queue)

    async def _try(self, circuit: Circuit, probe: Awaitable[bool]) -> bool:
        with suppress(ModelyardError):  # no worker, a full queue: the next probe may succeed
            if await probe:
                return True
        circuit.pause_s = min(2 * circuit.pause_s, LONGEST_PAUSE_S)
        circuit.probe_at_s = time.monotonic() + circuit.pause_s
        return False

    async def _log(self, queue: str, kind: str, why: str) -> None:
        name, version = keys.model_of(queue)
        decision = Decision(
            at_ms=self._clock.now_ms(), kind=kind, model_name=name, model_version=version, by="", reason=why
        )
        with suppress(ModelyardError):
            await self._decisions.add(decision)
