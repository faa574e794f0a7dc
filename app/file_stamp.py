"""Tells whether a file has been edited since it was last read."""

from __future__ import annotations

import time
from pathlib import Path


def file_stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes with each edit of the file, and when another file takes its name; None while there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_ctime_ns, found.st_size) if found else None


class EditWatch:
    """Looks for edits of a file. An edit counts once two looks in a row have seen the same file.

    An editor may be seen while it writes: the beginning of a file can be a valid file that says less.

    Args:
        path: The file; created before the file is read, so that no edit is missed.
        apart_s: Seconds that must lie between the two looks.
    """

    def __init__(self, path: Path | None, apart_s: float = 0.0) -> None:
        self._read = self._seen = file_stamp(path)
        self._apart_s = apart_s
        self._seen_at_s = time.monotonic()

    def is_edited(self, path: Path | None) -> bool:
        """Whether there is an edit to be read; True once for each."""
        stamp = file_stamp(path)
        if stamp != self._seen:
            self._seen, self._seen_at_s = stamp, time.monotonic()
            return False
        if stamp == self._read or time.monotonic() - self._seen_at_s < self._apart_s:
            return False
        self._read = stamp
        return True
