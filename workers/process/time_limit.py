"""Ends forward passes that take too long: three ways, by what the pass is stuck in.

| stuck in | ended by |
| --- | --- |
| Python, or a call that a signal interrupts | SIGALRM, which raises in the main thread; the worker goes on |
| native code that leaves the GIL to others | the watchdog: it notes whose job it was and ends the process |
| native code that holds the GIL | faulthandler's thread, in C: the process ends; the next one has `marker` |
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

from app.errors import InferenceTimeoutError

GRACE_S = 1.0  # between two of the three ways
EVERY_S = 0.5
STDERR = 2  # its number: a model may have replaced `sys.stderr`


class _TimeIsUpError(BaseException):
    """Raised into the model's code, which may well catch every `Exception`."""


class TimeLimit:
    """A limit to each forward pass, for the main thread. Setting and clearing it costs two microseconds.

    Args:
        limit_s: Seconds that a pass may take.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._since_s = 0.0
        self._pid = 0

    @property
    def is_overrun(self) -> bool:
        """Whether a pass goes on although it was told to end."""
        since_s = self._since_s
        return since_s > 0 and time.monotonic() > since_s + self._limit_s + GRACE_S

    def install(self) -> None:
        """Take SIGALRM over; without it the signal ends the process."""
        signal.signal(signal.SIGALRM, self._ring)
        self._pid = os.getpid()

    def run(self, predict: Callable[[Any], Any], samples: Any) -> Any:
        """What `predict` answers.

        A process that the model has forked ends here: it must not go on as a second worker on the same connections.

        Raises:
            InferenceTimeoutError: It did not within the limit.
            RuntimeError: It raised what would end the process, such as `SystemExit`.
        """
        self._since_s = time.monotonic()
        # Again each second after the first time: the model may have code that catches everything.
        signal.setitimer(signal.ITIMER_REAL, self._limit_s, GRACE_S)
        try:
            try:
                return predict(samples)
            finally:
                self._clear()
                if self._pid not in (0, os.getpid()):
                    _end_fork()
        except _TimeIsUpError:  # out of `predict`, or out of the `finally` that it just reached
            self._clear()
            raise InferenceTimeoutError(f"the forward pass took longer than {self._limit_s:g} s") from None
        except (WorkerShutdown, WorkerTerminate):  # Celery's own, from a signal
            raise
        except (SystemExit, KeyboardInterrupt, CancelledError) as error:  # Celery would take it for an order
            raise RuntimeError(
                f"the model raised {type(error).__name__}, which would end its worker"
            ) from error

    def _clear(self) -> None:
        self._since_s = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if self._since_s:  # else the pass has ended while the signal was on its way
            raise _TimeIsUpError


def _end_fork() -> NoReturn:
    """End a process that the model has forked, as Python would at the end of its program."""
    error = sys.exc_info()[1]
    status = error.code if isinstance(error, SystemExit) else error and 1
    os._exit(status if isinstance(status, int) else int(status is not None))


class Watchdog:
    """Ends the process when a pass does not end although it was told to.

    Args:
        limit: Whose overrun is looked for.
        limit_s: Seconds for which Python may stand still before the process is ended without a word.
        on_overrun: Called then, from a thread; is to end the process.
    """

    def __init__(self, limit: TimeLimit, limit_s: float, on_overrun: Callable[[], None]) -> None:
        self._limit = limit
        self._standstill_s = limit_s + 2 * GRACE_S
        self._on_overrun = on_overrun
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Look every half second; the first batch may hang before the thread has run at all."""
        self._postpone_the_end()
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closing.wait(EVERY_S):
            self._postpone_the_end()
            if self._limit.is_overrun:
                self._on_overrun()

    def _postpone_the_end(self) -> None:
        # A thread written in C: it fires where this one, like all of Python, stands still until then.
        faulthandler.dump_traceback_later(self._standstill_s, exit=True, file=STDERR)
