"""Keeps freed memory in the process, for the next large body or array."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD_BYTES = 2**25  # glibc accepts no more


def reuse_memory(kept_bytes: int) -> None:
    """Let glibc keep up to `kept_bytes` of freed memory at the end of its heap.

    It would return it to the kernel after each large body or array. Getting it again, page by page, costs more than
    reading the body, and up to a tenth of the forward pass of a ResNet-18.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD_BYTES)
        libc.mallopt(TRIM_THRESHOLD, kept_bytes)
