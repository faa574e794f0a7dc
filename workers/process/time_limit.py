"""Ends forward passes that take too long. The mechanism depends on where the pass is stuck.

| stuck in | ended by |
| --- | --- |
| Python, or an interruptible system call | SIGALRM, which raises in the main thread; the worker continues |
| native code that has released the GIL | the watchdog: it records the job and ends the process |
| native code that holds the GIL | faulthandler's C thread ends the process; the next one reads the marker |
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from celery.exceptions import WorkerShutdown, WorkerTerminate

from app.server_errors import InferenceTimeoutError

GRACE_S = 1.0  # delay from one mechanism to the next
EVERY_S = 0.5
STDERR = 2  # file descriptor: a model may have replaced `sys.stderr`


class _TimeIsUpError(BaseException):
    """Raised inside the model's code; a BaseException, because the model may catch every `Exception`."""


class TimeLimit:
    """A time limit for each forward pass in the main thread. Setting and clearing it costs two microseconds.

    Args:
        limit_s: Maximum duration of a pass in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s = 0.0
        self._pid = 0

    @property
    def is_overrun(self) -> bool:
        """Whether a pass continues although it was interrupted."""
        since_s = self._since_s
        return since_s > 0 and time.monotonic() > since_s + self._limit_s + GRACE_S

    def install(self) -> None:
        """Install the SIGALRM handler; without it the signal ends the process."""
        signal.signal(signal.SIGALRM, self._ring)
        self._pid = os.getpid()

    def run(self, predict: Callable[[Any], Any], samples: Any) -> Any:
        """Call `predict` and return its output.

        A process that the model has forked ends here: it must not become a second worker on the same connections.

        Raises:
            InferenceTimeoutError: `predict` exceeded the limit.
            RuntimeError: It raised an exception that would end the process, such as `SystemExit`.
        """
        self._since_s = time.monotonic()
        # Repeated each second after the first time: the model may have code that catches everything.
        signal.setitimer(signal.ITIMER_REAL, self._limit_s, GRACE_S)
        try:
            try:
                return predict(samples)
            finally:
                self._clear()
                if self._pid not in (0, os.getpid()):
                    _end_fork()
        except _TimeIsUpError:  # from `predict`, or from the `finally` block if the pass has just ended
            self._clear()
            raise InferenceTimeoutError(f"the forward pass took longer than {self._limit_s:g} s") from None
        except (WorkerShutdown, WorkerTerminate):  # Celery's own, from a signal
            raise
        except (
            SystemExit,
            KeyboardInterrupt,
            CancelledError,
        ) as error:  # Celery would interpret it as a request to stop
            raise RuntimeError(
                f"the model raised {type(error).__name__}, which would end its worker"
            ) from error

    def _clear(self) -> None:
        self._since_s = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._since_s:  # otherwise the pass ended before the signal arrived
            raise _TimeIsUpError


def _end_fork() -> NoReturn:
    """End a process that the model has forked, as Python does at the end of a program."""
    error = sys.exc_info()[1]
    status = error.code if isinstance(error, SystemExit) else error and 1
    os._exit(status if isinstance(status, int) else int(status is not None))


class Watchdog:
    """Ends the process when a pass continues although it was interrupted.

    Args:
        limit: The time limit whose overrun is watched.
        limit_s: Seconds without progress in Python after which the process ends without a log line.
        on_overrun: Called from a thread on an overrun; must end the process.
    """

    def __init__(self, limit: TimeLimit, limit_s: float, on_overrun: Callable[[], None]) -> None:
        self._limit = limit
        self._standstill_s = limit_s + 2 * GRACE_S
        self._on_overrun = on_overrun
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start checking every half second; armed immediately, as the first batch may hang before the thread runs."""
        self._postpone_the_end()
        self._thread.start()

    def close(self) -> None:
        """Stop checking."""
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._postpone_the_end()
            if self._limit.is_overrun:
                self._on_overrun()

    def _postpone_the_end(self) -> None:
        # A thread written in C: it fires if this thread, like all of Python, is blocked until then.
        faulthandler.dump_traceback_later(self._standstill_s, exit=True, file=STDERR)
