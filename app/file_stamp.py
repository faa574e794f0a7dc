"""Tells whether a file has changed since it was last looked at."""

from __future__ import annotations

from pathlib import Path


def file_stamp(path: Path | None) -> tuple[int, int, int] | None:
    """Changes with each edit of the file, and when another file takes its name; None while there is no file."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_ctime_ns, found.st_size) if found else None
