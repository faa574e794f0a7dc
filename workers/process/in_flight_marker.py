"""The in-flight marker: the job that a serving process ran when it died, for the next forked process.

It also holds whether the worker was told to leave the routing, which the next process must do as well, and how many
processes in a row have died while they ran a batch.

A process may die at any instruction, and while native code holds the GIL, no thread can report anything. So the process
records in advance which job it starts, in memory that is shared with the supervisor and all later forks.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass

import msgspec

SIZE_BYTES = 4096
LENGTH_BYTES = 4
LEAVING = SIZE_BYTES - 1
DEATHS = SIZE_BYTES - 2
BUSY = SIZE_BYTES - 3
MOST_DEATHS = 255  # fits into a byte


@dataclass(frozen=True, slots=True)
class InFlight:
    """The last recorded state.

    Attributes:
        worker_id: Id of the serving worker.
        batch_id: Batch of the job that ran alone, or empty.
        index: The job's index.
        since_s: When it began to run, `time.monotonic()`.
    """

    worker_id: str
    batch_id: str = ""
    index: int = 0
    since_s: float = 0.0


class InFlightMarker:
    """The shared memory; it must be created before the first fork.

    Args:
        memory: Memory shared between processes; by default a new block.

    Attributes:
        ended_at_s: When the previous process was found dead, `time.monotonic()`.
    """

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        self.ended_at_s = 0.0
        self._memory = memory or mmap.mmap(-1, SIZE_BYTES)
        self._worker_id = ""
        self._idle = _encoded(InFlight(""))

    def serves(self, worker_id: str) -> None:
        """Record the serving worker."""
        self._worker_id = worker_id
        self._idle = _encoded(InFlight(worker_id))
        self.ran()

    def runs_alone(self, batch_id: str, index: int) -> None:
        """Record a job that is about to run alone in a forward pass."""
        noted = _encoded(InFlight(self._worker_id, batch_id, index, time.monotonic()))
        self._memory[: len(noted)] = noted

    def ran(self) -> None:
        """Record that no job runs alone."""
        self._memory[: len(self._idle)] = self._idle

    def batch_started(self) -> None:
        """Record that a batch runs."""
        self._memory[BUSY] = True

    def batch_ended(self) -> None:
        """Record that no batch runs."""
        self._memory[BUSY] = False

    def passed(self) -> None:
        """Forget the deaths: a forward pass has ended well."""
        self._memory[DEATHS] = 0

    @property
    def n_deaths(self) -> int:
        """Processes in a row that died while they ran a batch, since a forward pass last ended well."""
        return self._memory[DEATHS]

    def leave(self) -> None:
        """Record that the worker was told to leave the routing. Safe in a signal handler."""
        self._memory[LEAVING] = True

    @property
    def is_leaving(self) -> bool:
        """Whether the worker was told to leave the routing."""
        return bool(self._memory[LEAVING])

    def end(self) -> None:
        """Record in the supervisor that the process is dead."""
        self.ended_at_s = time.monotonic()
        self._memory[DEATHS] = min(self.n_deaths + self._memory[BUSY], MOST_DEATHS)
        self.batch_ended()

    def read(self) -> InFlight | None:
        """The last recorded state; None if there is none, or if the process died while writing it."""
        length = int.from_bytes(self._memory[:LENGTH_BYTES], "little")
        try:
            return msgspec.msgpack.decode(self._memory[LENGTH_BYTES : LENGTH_BYTES + length], type=InFlight)
        except msgspec.DecodeError:
            return None


def _encoded(noted: InFlight) -> bytes:
    data = msgspec.msgpack.encode(noted)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data
