"""A process that keeps freed memory gets no new pages for the arrays that follow."""

from __future__ import annotations

import subprocess
import sys

import pytest

ARRAYS = """
import resource, sys
import numpy as np
from app.freed_memory import reuse_memory

if sys.argv[1] == "keeps":
    reuse_memory(2**26)
for each in range(9):
    np.ones(2**21)  # 16 MiB
    if each == 1:
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


@pytest.mark.process
def test_arrays_after_the_first_ones_take_no_new_pages() -> None:
    done = subprocess.run([sys.executable, "-c", ARRAYS, "keeps"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 7 arrays have 28,672 pages
