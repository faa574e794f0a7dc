"""The temporary folder of a worker or follower. Folders that killed processes have left are removed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "modelyard-"
LOCK = "modelyard.lock"


def make(prefix: str = PREFIX) -> str:
    """Create a folder for this process, and remove those whose processes have ended.

    A lock says that a folder is in use. It ends with this process, its forks and the programs that they become.
    """
    _remove_left()
    folder = tempfile.mkdtemp(prefix=prefix)
    file = Path(folder, f"{LOCK}.new")
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    os.set_inheritable(descriptor, True)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        file.rename(file.with_name(LOCK))  # only now, so that it is never seen unlocked
    return folder


def _remove_left() -> None:
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError), lock.open("rb") as file:  # it is in use, or another user's
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
