"""The supervisor of a worker that is a fork of the fork server: it forks once more before it does anything.

A worker that reads its settings and looks up its version writes to 15 MiB of the memory that all forks share, and so
copies it; its serving process would copy the same memory again. Here only the serving process does all this, and leaves
what it found in a file, for the next serving process.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import msgspec

from workers.process import prefork_supervisor, temporary_folder
from workers.process.in_flight_marker import InFlightMarker
from workers.process.prefork_supervisor import LEAVE_ROUTING, TellReady

T = TypeVar("T")
FOUND = "found.msgpack"


@dataclass(frozen=True)
class Above:
    """The supervisor above this process.

    Attributes:
        marker: The in-flight marker of its children.
        folder: Their folder for temporary files, which it removes.
        tell_ready: Tells it that this process is ready.
    """

    marker: InFlightMarker
    folder: str
    tell_ready: TellReady

    def found(self, kind: type[T]) -> T | None:
        """What an earlier child has left; None if there was none."""
        try:
            return msgspec.msgpack.decode(Path(self.folder, FOUND).read_bytes(), type=kind)
        except FileNotFoundError:
            return None

    def keep(self, found: object) -> None:
        """Leave something for later children."""
        new = Path(self.folder, f"{FOUND}.new")
        new.write_bytes(msgspec.msgpack.encode(found))
        new.rename(new.with_name(FOUND))


_above: Above | None = None


def above() -> Above | None:
    """The supervisor above this process; None if it has none yet."""
    return _above


def supervise(program: Callable[[], object]) -> NoReturn:
    """Supervise a worker: run the program in a child, and again whenever a child that was ready has died."""
    marker, folder = InFlightMarker(), temporary_folder.make()
    signal.signal(LEAVE_ROUTING, lambda *_: marker.leave())  # children inherit it

    def serve(tell_ready: TellReady) -> None:
        global _above
        _above = Above(marker, folder, tell_ready)
        program()

    prefork_supervisor.supervise(serve, partial(shutil.rmtree, folder, ignore_errors=True), marker.end)
