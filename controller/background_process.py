"""Shared by the controller's own processes: low priority beside callers, and limits for decoders."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

NICENESS = 5  # if CPU time is scarce, all other callers come first
MAPPED_PAGES = Path("/proc/self/statm")


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
