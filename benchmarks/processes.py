"""Starts a system's processes, waits until it predicts, and stops all of them."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import machine
from benchmarks.systems import Place, System
from benchmarks.wrk_load import JSON, Target

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
READY_LIMIT_S = 240.0
SETTLE_LIMIT_S = 30.0
ASK_ALL_AFTER_S = 10.0
KILL_AFTER_S = 15.0
POLL_S = 0.1
TAIL_LINES = 15


class StartError(Exception):
    """A system does not start or predict; the text holds the end of its log."""


def adopt_orphans() -> None:
    """Adopt orphaned descendants, so that daemons are measured and stopped too."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def free_port() -> int:
    """A free TCP port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(system: System, place: Place, target: Target) -> Iterator[None]:
    """Run a system, ready to predict, for the duration of the context.

    Raises:
        StartError: It died, or did not predict in time.
    """
    log = place.folder / f"{system.name}.log"
    try:
        with log.open("wb") as output:
            processes = [
                subprocess.Popen(
                    command.arguments,
                    env={**os.environ, **command.environment},
                    cwd=place.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
                for command in system.commands(place)
            ]
        _wait_until_it_predicts(system, target, processes, log)
        yield
    finally:
        stop_all()


def _wait_until_it_predicts(
    system: System, target: Target, processes: list[subprocess.Popen[bytes]], log: Path
) -> None:
    give_up_at = time.monotonic() + READY_LIMIT_S
    while not predicts(target):
        died = any(process.poll() is not None for process in processes)
        if died or time.monotonic() > give_up_at:
            what = "stopped while it was starting" if died else f"did not predict within {READY_LIMIT_S:g} s"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
            raise StartError(f"{system.name} {what}; the end of its log:\n{tail}")
        time.sleep(POLL_S)


def settle(target: Target) -> None:
    """Wait until a server has worked off the requests that an ended load left behind."""
    give_up_at = time.monotonic() + SETTLE_LIMIT_S
    while not predicts(target) and time.monotonic() < give_up_at:
        time.sleep(POLL_S)


def predicts(target: Target) -> bool:
    """Whether a server answers a prediction with 200."""
    body = target.bodies.read_text().split("\n", 1)[0].split("\t", 1)[1]
    data = Path(body[1:]).read_bytes() if body.startswith("@") else body.encode()
    return post(target.url, data, target.content_type)[0] == 200


def post(url: str, body: str | bytes, content_type: str = JSON) -> tuple[int, str]:
    """Post a body; return status and body, or (0, "") without an answer."""
    where = urlsplit(url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=10)
    try:
        target = where.path + (f"?{where.query}" if where.query else "")
        connection.request("POST", target, body, {"Content-Type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, HTTPException):
        return 0, ""
    finally:
        connection.close()


def stop_all() -> None:
    """Stop every descendant: SIGTERM to the children and to remaining processes, then SIGKILL."""
    started_at = time.monotonic()
    for pid in machine.children(os.getpid()):
        _signal(pid, signal.SIGTERM)
    asked_all = False
    while pids := _alive():
        waited_s = time.monotonic() - started_at
        if waited_s > ASK_ALL_AFTER_S and not asked_all:
            asked_all = True
            for pid in pids:
                _signal(pid, signal.SIGTERM)
        if waited_s > KILL_AFTER_S:
            for pid in pids:
                _signal(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _alive() -> list[int]:
    # Reap ended processes, including adopted orphans.
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return machine.descendants(os.getpid())


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
