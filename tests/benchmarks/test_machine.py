"""What processes hold together: pages that a fork left shared count once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import machine

MIB = 2**20
BALLAST = 64 * MIB
CODE = """
import os, sys
ballast = bytearray(os.urandom(1)) * {ballast}
for _ in range({children}):
    if not os.fork():
        {does}
        print(flush=True)
        sys.stdin.read()
        os._exit(0)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def running(children: int, does: str = "pass") -> Iterator[int]:
    code = CODE.format(ballast=BALLAST, children=children, does=does)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout
        for _ in range(children + 1):
            process.stdout.readline()
        yield process.pid


def test_one_process_holds_what_is_resident() -> None:
    with running(children=0) as pid:
        held_bytes = machine.held_bytes(pid)
        assert held_bytes > BALLAST
        assert held_bytes == pytest.approx(machine.resident_bytes(pid), rel=0.01)  # read one after the other


def test_what_children_share_with_their_parent_counts_once() -> None:
    with running(children=2) as pid:
        assert BALLAST < machine.held_bytes(pid) < BALLAST + 30 * MIB


def test_what_a_child_has_written_to_counts_again() -> None:
    with running(children=1, does="ballast[::4096] = bytes(len(ballast[::4096]))") as pid:
        assert 2 * BALLAST < machine.held_bytes(pid) < 2 * BALLAST + 30 * MIB
