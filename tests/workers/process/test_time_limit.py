"""A forward pass that takes too long is ended; what native code does to a real worker is in `faults/rows`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from app.server_errors import InferenceTimeoutError
from workers.process.time_limit import TimeLimit

LIMIT_S = 0.1


@pytest.fixture
def limit() -> Iterator[TimeLimit]:
    """Installed; afterwards the signal and the timer are again what pytest-timeout made of them."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    made = TimeLimit(LIMIT_S)
    made.install()
    yield made
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def forever(_: object) -> None:
    while True:
        time.sleep(60)


def test_a_pass_that_never_ends_is_ended_and_the_next_one_runs(limit: TimeLimit) -> None:
    with pytest.raises(InferenceTimeoutError, match=r"longer than 0\.1 s"):
        limit.run(forever, None)
    assert limit.run(lambda samples: samples + 1, 1) == 2
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_code_that_catches_every_exception_does_not_get_round_the_limit(limit: TimeLimit) -> None:
    def stubborn(_: object) -> None:
        while True:
            try:
                forever(None)
            except Exception:
                continue

    with pytest.raises(InferenceTimeoutError):
        limit.run(stubborn, None)


def test_an_error_of_the_model_passes_through_and_clears_the_timer(limit: TimeLimit) -> None:
    def fails(_: object) -> None:
        raise ValueError("of the model")

    with pytest.raises(ValueError, match="of the model"):
        limit.run(fails, None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_signal_that_arrives_late_raises_nothing(limit: TimeLimit) -> None:
    limit.run(str, 1)
    signal.raise_signal(signal.SIGALRM)


WATCHED = """
import ctypes, sys
from workers.process.time_limit import TimeLimit, Watchdog
limit = TimeLimit(60)
Watchdog(limit, 0.1, lambda: sys.exit(0)).start()
libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
def never(samples):
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
limit.run(never, None)
"""


def test_a_pass_that_holds_the_interpreter_for_ever_ends_the_process_with_a_traceback() -> None:
    ended = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "in never" in ended.stderr
