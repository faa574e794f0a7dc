"""The files through which an alias follower and the workers that it started communicate.

Each worker has a folder with a file of the follower's messages, a file of the worker's messages, and the worker's ready
file. A file outlives a serving process, so that the next one drains as well. Nothing heavy is imported, because the
follower is a small process.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from app.whole_file import replace_file

VARIABLE = "_MODELYARD_FOLLOWED"  # the worker's folder; not a setting
READY = "ready"


class Told(NamedTuple):
    """The follower's message to a worker.

    Attributes:
        alias: The alias that the follower follows, or `latest`.
        follower_pid: Process id of the follower, which takes signals.
        warning: What is wrong with the alias; empty if nothing is.
        failed_version: The version that the alias names now, if its worker did not start; else 0.
        failure: Why, and when it is started again.
        successor: Version whose worker is ready, so that this worker leaves the routing, finishes the jobs of its queue
            and ends; 0 if there is none.
    """

    alias: str
    follower_pid: int
    warning: str = ""
    failed_version: int = 0
    failure: str = ""
    successor: int = 0


class Said(NamedTuple):
    """A worker's message to the follower.

    Attributes:
        version: Its version; 0 until it is known.
        named: The version that the alias names now: 0 if the registry has no such alias, None until that is known.
        error: Why it ended.
        is_away: Whether it ended because the registry or Redis did not answer.
    """

    version: int = 0
    named: int | None = None
    error: str = ""
    is_away: bool = False


Words = TypeVar("Words", Told, Said)


def own_folder() -> Path | None:
    """The folder of this worker; None if no follower started it."""
    folder = os.environ.get(VARIABLE)
    return Path(folder) if folder else None


def report_end(error: str, *, is_away: bool) -> None:
    """Say why this worker ends, if a follower started it."""
    folder = own_folder()
    if folder:
        with suppress(OSError):  # the follower has ended
            write(folder, Said(error=error, is_away=is_away))


def write(folder: Path, words: Told | Said) -> None:
    """Replace the file of these words.

    Raises:
        OSError: It cannot be written.
    """
    replace_file(_path(folder, type(words)), json.dumps(words._asdict()).encode())


def read(folder: Path, kind: type[Words]) -> Words | None:
    """The last words of a kind; None if there are none."""
    try:
        return kind(**json.loads(_path(folder, kind).read_bytes()))
    except (OSError, ValueError):
        return None


def _path(folder: Path, kind: type[Told] | type[Said]) -> Path:
    return folder / f"{kind.__name__.lower()}.json"
