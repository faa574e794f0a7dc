"""What a serving process had in hand when it died, for the one that is forked after it.

It may die at any instruction, and native code that holds the GIL lets none of its threads say a word. So it notes
beforehand what it is about to do, in memory that it shares with its parent and with whatever that forks next.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass

import msgspec

SIZE_BYTES = 4096
LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class InFlight:
    """What was noted last.

    Attributes:
        worker_id: Who served.
        batch_id: Of a job that ran alone then, or empty.
        index: The job's index.
        since_s: When it began to run, `time.monotonic()`.
    """

    worker_id: str
    batch_id: str = ""
    index: int = 0
    since_s: float = 0.0


class InFlightMarker:
    """The memory, which is to be made before the first fork.

    Args:
        memory: Shared between processes; by default a new one.

    Attributes:
        ended_at_s: When the process before this one was found dead, `time.monotonic()`.
    """

    def __init__(self, memory: mmap.mmap | None = None) -> None:
        self.ended_at_s = 0.0
        self._memory = memory or mmap.mmap(-1, SIZE_BYTES)
        self._worker_id = ""

    def serves(self, worker_id: str) -> None:
        """Note who serves from now on."""
        self._worker_id = worker_id
        self.ran()

    def runs_alone(self, batch_id: str, index: int) -> None:
        """Note the job that is about to run with no other in its forward pass."""
        self._write(InFlight(self._worker_id, batch_id, index, time.monotonic()))

    def ran(self) -> None:
        """Note that no job runs alone."""
        self._write(InFlight(self._worker_id))

    def end(self) -> None:
        """Note, in the parent, that it is dead."""
        self.ended_at_s = time.monotonic()

    def read(self) -> InFlight | None:
        """What was noted last; None where nothing was, or where death came in the middle of it."""
        length = int.from_bytes(self._memory[:LENGTH_BYTES], "little")
        try:
            return msgspec.msgpack.decode(self._memory[LENGTH_BYTES : LENGTH_BYTES + length], type=InFlight)
        except msgspec.DecodeError:
            return None

    def _write(self, noted: InFlight) -> None:
        data = msgspec.msgpack.encode(noted)
        self._memory[: LENGTH_BYTES + len(data)] = len(data).to_bytes(LENGTH_BYTES, "little") + data
