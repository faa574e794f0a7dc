"""`python -I -S fork_client.py MODULE ARGUMENT…`: runs `python -m MODULE ARGUMENT…` in a fork of the fork server.

This process is the one that others start, signal and wait for. It passes its environment, folder and standard streams
to the fork, forwards signals to it, and ends with its status. The fork is killed when this process dies. If no fork
server answers, this process becomes the program itself, and nothing else differs. It stays small, because there is one
for each worker: it imports only the standard library, and not even the package in which it lies.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

VARIABLE = "_MODELYARD_FORK_SERVER"  # the server's socket; not a setting
CLIENT = "_MODELYARD_FORK_CLIENT"  # process id of the client, in the environment of its fork
FORK, IMPORT = b"F", b"I"  # the first byte of a connection
WORD = struct.Struct("=i")
# Statuses of a fork that no program uses: it asks for another start, or has ended well without having served.
AGAIN, ALONE, DONE = 198, 199, 200
MOST_FORKS = 4  # each one but the first after an import that the server lacked
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR2)
IMPORT_LIMIT_S = 120.0  # so long a server may import; later this process starts the program itself


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module, in a fork where the environment names a server.

    Other processes than those of a pool with a fork server start the module in the ordinary way, without the detour.
    """
    if os.environ.get(VARIABLE):
        return client_command(module, *arguments)
    return [sys.executable, "-P", "-m", module, *arguments]  # -P: a folder of that name may stand here


def client_command(module: str, *arguments: str) -> list[str]:
    """The command of this program."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), module, *arguments]


def client_pid() -> int:
    """Process id of the client whose fork this process, or its parent, is; 0 if there is none."""
    return int(os.environ.get(CLIENT) or 0)


def require_own_process() -> None:
    """Start this program again without the fork server, if it runs in a fork.

    Raises:
        SystemExit: It does.
    """
    if client_pid():
        sys.exit(ALONE)


def leave() -> NoReturn:
    """End a program that has nothing to serve, with status 0; to a supervisor a fork's own 0 would be a failure."""
    sys.exit(DONE if client_pid() else 0)


def require_imports(modules: Sequence[str]) -> None:
    """Start this program again in a fork that has the modules already, if it runs in a fork that lacks one.

    Later forks have them as well.

    Raises:
        SystemExit: It does.
    """
    if not client_pid() or all(module in sys.modules for module in modules):
        return
    with suppress(OSError), _connect() as connection:
        connection.sendall(IMPORT + json.dumps(list(modules)).encode())
        connection.shutdown(socket.SHUT_WR)
        if connection.recv(1):  # the server could import them
            sys.exit(AGAIN)


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(IMPORT_LIMIT_S)
        connection.connect(os.environ[VARIABLE])
    except BaseException:
        connection.close()
        raise
    return connection


def _fork(arguments: Sequence[str]) -> int | None:
    """Run the program in a fork, and wait for its end; returns its status, None if no server made a fork."""
    alive, lifeline = os.pipe()  # the fork is killed when `lifeline`, which only this process has, closes
    try:
        with _connect() as connection:
            connection.sendall(FORK)
            request = {
                "arguments": arguments,
                "environment": os.environ | {CLIENT: str(os.getpid())},
                "folder": os.getcwd(),
            }
            socket.send_fds(connection, [b"\0"], [0, 1, 2, alive])
            os.close(alive)
            alive = -1
            connection.sendall(json.dumps(request).encode())
            connection.shutdown(socket.SHUT_WR)
            pid = _receive(connection)
            if not pid:
                return None
            return _wait(pid, connection)
    except OSError:
        return None
    finally:
        if alive >= 0:
            os.close(alive)
        os.close(lifeline)


def _wait(pid: int, connection: socket.socket) -> int:
    """Forward signals to a fork until it ends; returns its status.

    If the server has died, nobody can tell the status: it is 0 if the fork was told to end, else 1.
    """
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended already
        status = _receive(connection)
        return 1 if status is None else status
    told = []

    def forward(number: int, _: object) -> None:
        told.append(number)
        with suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(process, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    connection.settimeout(None)
    status = _receive(connection)
    if status is None:
        select.select([process], [], [])
        status = 0 if told else 1
    for number in FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    os.close(process)
    return 0 if told and status in (AGAIN, ALONE) else status  # it was told to stop before it served


def _receive(connection: socket.socket) -> int | None:
    try:
        word = connection.recv(WORD.size)
    except ConnectionError:
        return None
    return int(WORD.unpack(word)[0]) if len(word) == WORD.size else None


def main() -> NoReturn:
    """Run the program of the command line."""
    for _ in range(MOST_FORKS if os.environ.get(VARIABLE) else 0):
        status = _fork(sys.argv[1:])
        if status is None or status == ALONE:
            break
        if status == DONE:
            sys.exit(0)
        if status != AGAIN:
            sys.exit(status if status >= 0 else 128 - status)
    for name in (VARIABLE, CLIENT):
        os.environ.pop(name, None)
    command = [sys.executable, "-P", "-m", *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606  (this Python)


if __name__ == "__main__":
    main()
