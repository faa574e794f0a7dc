"""The parent of the process that serves: forks it, passes signals on to it, and forks again when it dies.

Whatever was imported and read before the fork, each serving process has at once. Nothing here knows of models or
Redis; when a serving process dies without having been ready, or goes when it was told to, so does its parent.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

logger = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
AWAITED = {*STOP_SIGNALS, signal.SIGCHLD, signal.SIGALRM}
SHORT_LIFE_S = 1.0  # from being ready to its death: what dies that soon, time and again, is not to spin
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
ORPHAN_POLL_S = 1.0
PR_SET_PDEATHSIG = 1  # prctl(2)


def keep_serving(clean_up: Callable[[], None], on_death: Callable[[], None]) -> Callable[[], None]:
    """Fork, and fork again whenever a process that was ready dies. Returns in the serving processes only.

    The caller must have started no thread: only the thread that forks lives on in the child. (Threads of OpenBLAS in
    NumPy and of jemalloc in pyarrow are there; both look after them in a fork.) The parent ends with the status of the
    last child, or 128 and the number of the signal that ended it.

    Args:
        clean_up: Called as the parent ends, unless that is killed.
        on_death: Called in the parent as soon as a child has died that is to be followed by another.

    Returns:
        What the serving process calls once it is ready.
    """
    parent, ask_for_signal = os.getpid(), signal_at_parents_death(signal.SIGKILL)
    gc.freeze()  # a collection would write to all objects, and so copy what the child shares with its parent
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # macOS keeps none waiting that is ignored
    pause_s = 0.0
    while True:
        told, tell = os.pipe()
        pid = _fork()
        if not pid:
            os.close(told)
            _become_child(parent, ask_for_signal, mask)
            return partial(_tell, tell)
        os.close(tell)
        end = _wait_for(pid, told)
        if end.status == 0 or end.was_stopped or end.served_s is None:
            _end_like(end, clean_up)
        on_death()
        logger.error("process %d, which served for %.1f s, %s; starting another", pid, end.served_s, end)
        pause_s = _next_pause_s(pause_s, end.served_s)
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

    def __str__(self) -> str:
        if self.status >= 0:
            return f"ended with status {self.status}"
        return f"was ended by signal {-self.status} ({signal.strsignal(-self.status)})"


def _end_like(end: _End, clean_up: Callable[[], None]) -> NoReturn:
    if end.status < 0 and not end.was_stopped:  # else it has said why itself
        logger.error("the process that was to serve %s", end)
    clean_up()
    leave(end.status if end.status >= 0 else 128 - end.status)


def leave(status: int) -> NoReturn:
    """End this process at once: to take PyTorch down takes Python another second, and nobody needs it."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _fork() -> int:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else both processes would write what waits here
    return os.fork()


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


def _wait_for(pid: int, told: int) -> _End:
    """Pass signals on to a child until it has ended."""
    was_stopped = False
    while True:
        number = signal.sigwait(AWAITED)
        if number in STOP_SIGNALS:
            was_stopped = True
            os.kill(pid, number)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            ready_at_s = _hear(told)
            served_s = time.monotonic() - ready_at_s if ready_at_s else None
            return _End(os.waitstatus_to_exitcode(status), served_s, was_stopped)


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
