"""The prefork supervisor: forks the serving process, passes signals on to it, and forks again when it ends.

Whatever was imported and read before the fork, each serving process has at once. Nothing here knows of models or
Redis. The supervisor ends with its child in two cases: it was told to stop, or the first child never was ready.
A child that ends in any other way, with status 0 too, is followed by another: a model may call `sys.exit`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
AWAITED = {*STOP_SIGNALS, signal.SIGCHLD, signal.SIGALRM}
SHORT_LIFE_S = 1.0  # from being ready to its death: what dies that soon, time and again, is not to spin
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
ORPHAN_POLL_S = 1.0
STANDSTILL_S = 60.0
EX_SOFTWARE = 70  # sysexits.h
UNTOLD = " without having been told to stop"
HINT = "; a model must not end its process while it loads"
PR_SET_PDEATHSIG = 1  # prctl(2)


def supervise(
    serve: Callable[[Callable[[], None]], None],
    clean_up: Callable[[], None],
    on_death: Callable[[], None],
    stop_limit_s: float,
    standstill_s: float = STANDSTILL_S,
) -> NoReturn:
    """Fork a process that serves, and another one whenever it ends though nobody told it to stop.

    The caller must have started no thread: only the thread that forks lives on in the child. (Threads of OpenBLAS in
    NumPy and of jemalloc in pyarrow are there; both look after them in a fork.) The supervisor ends with the status of
    the last child, or 128 and the number of the signal that ended it. If the first child ends before it is ready, so
    does the supervisor, with a status that is not 0. Exceptions of `serve` leave this function in the child only.

    Args:
        serve: Called in each child, with what it is to call once it is ready. The child ends when it returns.
        clean_up: Called in the supervisor as it ends, unless it is killed.
        on_death: Called in the supervisor as soon as a child has died that is to be followed by another.
        stop_limit_s: Seconds that a child may take to stop; then it is killed.
        standstill_s: Seconds that a child may be suspended (SIGSTOP); then it is killed.
    """
    supervisor, ask_for_signal = os.getpid(), signal_at_parents_death(signal.SIGKILL)
    gc.freeze()  # a collection would write to all objects, and so copy what the child shares with its parent
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # macOS keeps none waiting that is ignored
    pause_s, has_served = 0.0, False
    while True:
        told, tell = os.pipe()
        _flush()  # else both processes would write what waits here
        pid = os.fork()
        if pid == 0:  # the serving process
            os.close(told)
            _become_child(supervisor, ask_for_signal, mask)
            serve(partial(_tell, tell))
            leave(0)
        # the supervisor
        os.close(tell)
        end = _Child(pid, told, stop_limit_s, standstill_s).wait()
        has_served = has_served or end.served_s is not None
        if end.was_stopped or not has_served:
            _end_like(end, clean_up)
        on_death()
        logger.error(
            "process %d, which %s, %s%s; starting another", pid, end.life, end, "" if end.status else UNTOLD
        )
        pause_s = _next_pause_s(pause_s, end.served_s or 0.0)
        if _is_stopped_within(pause_s):
            clean_up()
            leave(0)


@dataclass(frozen=True)
class _End:
    """How a child ended; as a string, in words.

    Attributes:
        status: Its exit status, or minus the signal that ended it.
        served_s: Since it was ready; None where it never was.
        was_stopped: Whether it was told to end.
    """

    status: int
    served_s: float | None
    was_stopped: bool

    @property
    def life(self) -> str:
        """How long it served, in words."""
        return "was not ready yet" if self.served_s is None else f"served for {self.served_s:.1f} s"

    def __str__(self) -> str:
        if self.status >= 0:
            return f"ended with status {self.status}"
        return f"was ended by signal {-self.status} ({signal.strsignal(-self.status)})"


def _end_like(end: _End, clean_up: Callable[[], None]) -> NoReturn:
    status = end.status if end.status >= 0 else 128 - end.status
    if end.status <= 0 and not end.was_stopped:  # else it has said why itself
        logger.error("the serving process %s before it was ready%s", end, "" if status else HINT)
        status = status or EX_SOFTWARE
    clean_up()
    leave(status)


def leave(status: int) -> NoReturn:
    """End this process at once: to take PyTorch down takes Python another second, and nobody needs it."""
    with suppress(Exception):  # a model may have closed anything
        logging.shutdown()
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a model may have closed it, or put anything in its place
            stream.flush()


def _become_child(
    parent: int, ask_for_signal: Callable[[], None] | None, mask: set[int | signal.Signals]
) -> None:
    if ask_for_signal:
        ask_for_signal()
    else:
        threading.Thread(target=_end_with, args=[parent], name="orphan", daemon=True).start()
    if os.getppid() != parent:  # it died before it could be asked for
        os._exit(1)
    # Ctrl-C goes to every process of the terminal's group; from the parent alone the child is told once.
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def signal_at_parents_death(number: int) -> Callable[[], None] | None:
    """What a child calls so that Linux signals it at its parent's death; None on other systems, which know no such."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork
    return lambda: libc.prctl(PR_SET_PDEATHSIG, number)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


def _tell(pipe: int) -> None:
    os.write(pipe, b"%f" % time.monotonic())  # of one clock in both processes
    os.close(pipe)


@dataclass
class _Child:
    """A child, and the signals that it is passed.

    Attributes:
        told: The end of a pipe that says when the child was ready.
        stop_limit_s: Seconds that it may take to stop.
        standstill_s: Seconds that it may be suspended.
        was_stopped: Whether it was told to stop.
        kill_at_s: When it is killed (`time.monotonic()`), if it has not ended by then.
    """

    pid: int
    told: int
    stop_limit_s: float
    standstill_s: float
    was_stopped: bool = False
    kill_at_s: float = math.inf

    def wait(self) -> _End:
        """Pass signals on until the child has ended."""
        while True:
            received = signal.sigwait(AWAITED)
            if received in STOP_SIGNALS:
                self._stop(received)
            elif received == signal.SIGALRM and time.monotonic() >= self.kill_at_s:
                logger.critical("process %d did not stop in time; killing it", self.pid)
                os.kill(self.pid, signal.SIGKILL)
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            if not pid:
                continue
            if os.WIFSTOPPED(status):
                self._note_standstill()
            elif os.WIFCONTINUED(status):
                if not self.was_stopped:
                    self._kill_in(0)
            else:
                self._kill_in(0)
                ready_at_s = _hear(self.told)
                served_s = time.monotonic() - ready_at_s if ready_at_s else None
                return _End(os.waitstatus_to_exitcode(status), served_s, self.was_stopped)

    def _stop(self, number: int) -> None:
        if not self.was_stopped:
            self._kill_in(self.stop_limit_s)
        self.was_stopped = True
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)  # a child that stands still would not hear of it

    def _note_standstill(self) -> None:
        if self.was_stopped:
            os.kill(self.pid, signal.SIGCONT)
            return
        logger.warning(
            "process %d is suspended (SIGSTOP); it is killed after %g s unless it gets SIGCONT",
            self.pid,
            self.standstill_s,
        )
        self._kill_in(self.standstill_s)

    def _kill_in(self, limit_s: float) -> None:
        """Kill the child after so many seconds; 0 means not at all."""
        self.kill_at_s = time.monotonic() + limit_s if limit_s else math.inf
        signal.setitimer(signal.ITIMER_REAL, limit_s)


def _hear(pipe: int) -> float:
    """When the child that has ended was ready (`time.monotonic()`), or 0."""
    os.set_blocking(pipe, False)  # a process of the model's may have the other end, and live
    try:
        return float(os.read(pipe, 64) or 0)
    except BlockingIOError:
        return 0.0
    finally:
        os.close(pipe)


def _next_pause_s(pause_s: float, served_s: float) -> float:
    if served_s > SHORT_LIFE_S:
        return 0.0
    return min(max(FIRST_PAUSE_S, 2 * pause_s), LONGEST_PAUSE_S)


def _is_stopped_within(pause_s: float) -> bool:
    if not pause_s:
        return False
    signal.setitimer(signal.ITIMER_REAL, pause_s)
    return signal.sigwait({*STOP_SIGNALS, signal.SIGALRM}) != signal.SIGALRM
