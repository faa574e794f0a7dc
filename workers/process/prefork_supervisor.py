"""The prefork supervisor: forks the serving process, forwards signals to it, and forks again when it ends.

Modules and data loaded before the fork are shared with each serving process. This module does not depend on models or
Redis. The supervisor ends with its child in two cases: it was told to stop, or the first child never became ready.
After any other end of a child, even with status 0, it forks another one: a model may call `sys.exit`.
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
LEAVE_ROUTING = signal.SIGUSR2  # tells a worker to get no new jobs, to finish its queue and to end
AWAITED = {*STOP_SIGNALS, LEAVE_ROUTING, signal.SIGCHLD, signal.SIGALRM}
# From ready to dead. After such a short life the next fork is delayed, to avoid a busy loop.
SHORT_LIFE_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
ORPHAN_POLL_S = 1.0
STANDSTILL_S = 60.0
STOP_LIMIT_S = 25.0  # of a child that is not ready
EX_SOFTWARE = 70  # sysexits.h
UNTOLD = " without having been told to stop"
HINT = "; a model must not end its process while it loads"
PR_SET_PDEATHSIG = 1  # prctl(2)
# Tells the supervisor that a child is ready, and the seconds that it may take to stop; then it is killed.
TellReady = Callable[[float], None]


def supervise(
    serve: Callable[[TellReady], None],
    clean_up: Callable[[], None],
    on_death: Callable[[], None],
    standstill_s: float = STANDSTILL_S,
) -> NoReturn:
    """Fork a serving process, and fork another one whenever it ends without having been told to stop.

    The caller must not have started a thread: only the forking thread survives in the child. (OpenBLAS in NumPy and
    jemalloc in pyarrow have threads, but both handle forks.) The supervisor ends with the status of the last child, or
    with 128 plus the number of the signal that ended it. If the first child ends before it is ready, the supervisor
    ends as well, with a non-zero status. Exceptions of `serve` leave this function only in the child.

    Args:
        serve: Called in each child with a callback for readiness. The child ends when it returns.
        clean_up: Called in the supervisor when it ends, unless it is killed.
        on_death: Called in the supervisor when a child has died, before it forks the next one.
        standstill_s: Seconds that a child may be suspended (SIGSTOP); then it is killed.
    """
    supervisor, ask_for_signal = os.getpid(), signal_at_parents_death(signal.SIGKILL)
    gc.freeze()  # a garbage collection would write to all objects and so copy the memory shared with the supervisor
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # on macOS an ignored signal does not become pending
    pause_s, has_served = 0.0, False
    while True:
        told, tell = os.pipe()
        _flush()  # otherwise both processes would write the buffered output
        pid = os.fork()
        if pid == 0:  # the serving process
            os.close(told)
            _become_child(supervisor, ask_for_signal, mask)
            serve(partial(_tell, tell))
            leave(0)
        # the supervisor
        os.close(tell)
        end = _Child(pid, told, standstill_s).wait()
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
    """How a child ended; `str` describes it in words.

    Attributes:
        status: Its exit status, or the negative number of the signal that ended it.
        served_s: Seconds since it was ready; None if it never was.
        was_stopped: Whether it was told to end.
    """

    status: int
    served_s: float | None
    was_stopped: bool

    @property
    def life(self) -> str:
        """The time that it served, in words."""
        return "was not ready yet" if self.served_s is None else f"served for {self.served_s:.1f} s"

    def __str__(self) -> str:
        if self.status >= 0:
            return f"ended with status {self.status}"
        return f"was ended by signal {-self.status} ({signal.strsignal(-self.status)})"


def _end_like(end: _End, clean_up: Callable[[], None]) -> NoReturn:
    status = end.status if end.status >= 0 else 128 - end.status
    if end.status <= 0 and not end.was_stopped:  # otherwise it has logged the reason itself
        logger.error("the serving process %s before it was ready%s", end, "" if status else HINT)
        status = status or EX_SOFTWARE
    clean_up()
    leave(status)


def leave(status: int) -> NoReturn:
    """End this process immediately: Python's teardown of PyTorch takes another second without any benefit."""
    with suppress(Exception):  # a model may have closed anything
        logging.shutdown()
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a model may have closed or replaced it
            stream.flush()


def _become_child(
    parent: int, ask_for_signal: Callable[[], None] | None, mask: set[int | signal.Signals]
) -> None:
    if ask_for_signal:
        ask_for_signal()
    else:
        threading.Thread(target=_end_with, args=[parent], name="orphan", daemon=True).start()
    if os.getppid() != parent:  # the parent died before the signal was requested
        os._exit(1)
    # Ctrl-C reaches every process of the terminal's group; the child must receive the signal only from its parent.
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def signal_at_parents_death(number: int) -> Callable[[], None] | None:
    """A function for a child that makes Linux signal it at its parent's death; None on other systems."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork
    return lambda: libc.prctl(PR_SET_PDEATHSIG, number)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_POLL_S)
    os._exit(1)


def _tell(pipe: int, stop_limit_s: float) -> None:
    os.write(pipe, b"%f %f" % (time.monotonic(), stop_limit_s))  # both processes have the same clock
    os.close(pipe)


@dataclass
class _Child:
    """A child process, and the signals forwarded to it.

    Attributes:
        told: Read end of a pipe over which the child reports that it is ready.
        standstill_s: Seconds that it may be suspended.
        was_stopped: Whether it was told to stop.
        kill_at_s: When it is killed if it is still running, `time.monotonic()`.
        ready_at_s: When it was ready, `time.monotonic()`; 0 if it was not, as far as is known.
        stop_limit_s: Seconds that it may take to stop.
    """

    pid: int
    told: int
    standstill_s: float
    was_stopped: bool = False
    kill_at_s: float = math.inf
    ready_at_s: float = 0.0
    stop_limit_s: float = STOP_LIMIT_S

    def wait(self) -> _End:
        """Forward signals until the child has ended."""
        while True:
            received = signal.sigwait(AWAITED)
            if received in STOP_SIGNALS:
                self._stop(received)
            elif received == LEAVE_ROUTING:
                os.kill(self.pid, received)
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
                self._hear()
                os.close(self.told)
                served_s = time.monotonic() - self.ready_at_s if self.ready_at_s else None
                return _End(os.waitstatus_to_exitcode(status), served_s, self.was_stopped)

    def _stop(self, number: int) -> None:
        if not self.was_stopped:
            self._hear()
            self._kill_in(self.stop_limit_s)
        self.was_stopped = True
        os.kill(self.pid, number)
        os.kill(self.pid, signal.SIGCONT)  # a suspended child would not receive the signal

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

    def _hear(self) -> None:
        os.set_blocking(self.told, False)  # a process started by the model may still hold the write end
        with suppress(BlockingIOError):
            if said := os.read(self.told, 64):
                self.ready_at_s, self.stop_limit_s = map(float, said.split())

    def _kill_in(self, limit_s: float) -> None:
        """Kill the child after `limit_s` seconds; 0 means never."""
        self.kill_at_s = time.monotonic() + limit_s if limit_s else math.inf
        signal.setitimer(signal.ITIMER_REAL, limit_s)


def _next_pause_s(pause_s: float, served_s: float) -> float:
    if served_s > SHORT_LIFE_S:
        return 0.0
    return min(max(FIRST_PAUSE_S, 2 * pause_s), LONGEST_PAUSE_S)


def _is_stopped_within(pause_s: float) -> bool:
    if not pause_s:
        return False
    signal.setitimer(signal.ITIMER_REAL, pause_s)
    return signal.sigwait({*STOP_SIGNALS, signal.SIGALRM}) != signal.SIGALRM
