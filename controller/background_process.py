"""Shared by the controller's own processes: low priority beside callers, limits for decoders, and reuse of memory."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from pathlib import Path

NICENESS = 5  # if CPU time is scarce, all other callers come first
MAPPED_PAGES = Path("/proc/self/statm")
# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD_BYTES = 2**25  # glibc accepts no more


def give_way() -> None:
    """Leave CPU time to others, and Ctrl-C to the controller, which ends this process."""
    os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def limit_memory(more_bytes: int) -> None:
    """Let allocations fail that would take more than `more_bytes` beyond what is mapped now; on Linux only."""
    if MAPPED_PAGES.exists():
        mapped_bytes = int(MAPPED_PAGES.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(
            resource.RLIMIT_AS, (mapped_bytes + more_bytes, resource.getrlimit(resource.RLIMIT_AS)[1])
        )


def reuse_memory(kept_bytes: int) -> None:
    """Let glibc keep up to `kept_bytes` of freed memory at the end of its heap for the next large body.

    It would return it to the kernel after each one. Getting it again, page by page, costs more than reading the body.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD_BYTES)
        libc.mallopt(TRIM_THRESHOLD, kept_bytes)
