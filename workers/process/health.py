"""Readiness check of a worker for its container: `python -m workers.process.health`.

A worker keeps a file (`MODELYARD_READY_FILE`) with a modification time in the future: the time when its record in
Redis expires. The check imports only the standard library and sends no requests, so that it takes hundredths of a
second even beside a busy worker.
"""

import os
import sys
import time
from contextlib import suppress


def tell_ready(path: str, ttl_s: float) -> None:
    """Mark the worker as ready for the next `ttl_s` seconds.

    Raises:
        OSError: The file cannot be written.
    """
    with open(path, "ab"):
        until_s = time.time() + ttl_s
        os.utime(path, (until_s, until_s))


def tell_not_ready(path: str) -> None:
    """Mark the worker as not ready."""
    with suppress(OSError):
        os.unlink(path)


def problem(path: str) -> str:
    """Why no worker is ready; empty if one is ready."""
    if not path:
        return "MODELYARD_READY_FILE is not set; set it to the same path for the worker and for this check"
    try:
        overdue_s = time.time() - os.stat(path).st_mtime
    except OSError as error:
        return f"no worker is ready: {error}"
    return f"no worker is ready: its last record expired {overdue_s:.0f} s ago" if overdue_s >= 0 else ""


if __name__ == "__main__":
    sys.exit(problem(os.environ.get("MODELYARD_READY_FILE", "")) or 0)
