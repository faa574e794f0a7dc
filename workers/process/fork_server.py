"""`python -m workers.process.fork_server SOCKET MODULE…`: imports modules once, and forks programs that need them.

The programs of `fork_client` share the memory of the imports, and start in a fraction of the time. A fork becomes its
program at once: it has the environment, folder and standard streams of its client, and a session of its own. It does
not depend on this process, which only reports its end. This process starts no thread, reads no model and connects to
nothing. It does not notice that installed packages have changed: restart it.

Relies on: Linux. `F_SETSIG` makes the kernel kill a fork when its client's end of a pipe closes. A fork names its
client in `/proc/self/comm`, since proc(5) shows it with the environment of this process.
"""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from app.logs import configure_logging
from workers.process.fork_client import FORK, IMPORT, WORD, client_pid

logger = logging.getLogger("workers.process.fork_server")  # this module is `__main__`
FORK_OF = "fork of "  # and the client's process id: the name of a fork in `/proc`, of at most 15 bytes
BACKLOG = 1024
TALK_LIMIT_S = 2.0  # a client has sent everything at once
PEER = struct.Struct("3i")  # process, user and group of a Unix socket's other end


def main() -> None:
    """Serve until SIGTERM; in a fork, run the program."""
    path, *modules = sys.argv[1:]
    listener = _listen(path)  # at once: clients wait until the modules are imported
    configure_logging()
    gc.disable()  # imports create a million objects, and hardly any garbage
    _import(modules)
    sys.argv = _serve(listener)
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # some are imported already
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _listen(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a server that has ended
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    listener.bind(path)
    os.umask(before)
    listener.listen(BACKLOG)
    return listener


def _import(modules: Sequence[str]) -> bool:
    """Import modules, and keep the collector from writing to them; returns whether all could be imported."""
    if all(module in sys.modules for module in modules):
        return True
    started_s, is_complete = time.monotonic(), True
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # the program that needs it will tell
            logger.info("%s cannot be imported here: %s", module, error)
            is_complete = False
    gc.collect()
    gc.freeze()
    logger.info("imported %s within %.1f s", ", ".join(modules), time.monotonic() - started_s)
    return is_complete


def _serve(listener: socket.socket) -> list[str]:
    """Answer clients; returns in each fork, with the arguments of its program."""
    clients: dict[int, tuple[int, socket.socket]] = {}  # process and connection by descriptor of the process
    events = select.poll()
    events.register(listener, select.POLLIN)
    while True:
        for number, _ in events.poll():
            if number != listener.fileno():
                events.unregister(number)
                _tell_end(number, *clients.pop(number))
                continue
            connection, _address = listener.accept()
            if not _is_fork(connection):
                connection.close()
                continue
            try:
                pid = os.fork()
            except OSError as error:
                logger.warning("no process can be forked: %s", error)
                connection.close()
                continue
            if pid == 0:
                listener.close()
                for descriptor, (_pid, other) in clients.items():
                    os.close(descriptor)
                    other.close()
                return _become(connection)
            process = os.pidfd_open(pid)
            clients[process] = pid, connection
            events.register(process, select.POLLIN)


def _is_fork(connection: socket.socket) -> bool:
    """Read what a client wants, and import modules if that is it."""
    connection.settimeout(TALK_LIMIT_S)
    peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    if PEER.unpack(peer)[1] != os.getuid():
        return False
    try:
        wanted = connection.recv(1)
        if wanted == IMPORT and _import(json.loads(_rest(connection))):
            connection.sendall(b"\1")
    except (OSError, ValueError):
        return False
    return wanted == FORK


def _rest(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as stream:
        return stream.read()


def _tell_end(process: int, pid: int, connection: socket.socket) -> None:
    os.close(process)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError), connection:  # the client has died
        connection.sendall(WORD.pack(status))


def _become(connection: socket.socket) -> list[str]:
    """Take over what a client has sent; returns the arguments of its program."""
    os.setsid()
    with connection:
        _, (*streams, alive), _flags, _address = socket.recv_fds(connection, 1, 4)
        request = json.loads(_rest(connection))
        connection.sendall(WORD.pack(os.getpid()))
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    _die_with(alive)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    Path("/proc/self/comm").write_text(f"{FORK_OF}{client_pid()}")
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # otherwise all forks would draw the same numbers
    gc.enable()
    arguments: list[str] = request["arguments"]
    return arguments


def _die_with(alive: int) -> None:
    """Have the kernel kill this process once the other end of a pipe is closed."""
    os.set_inheritable(alive, False)
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(alive, fcntl.F_SETFL, fcntl.fcntl(alive, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([alive], [], [], 0)[0]:  # it was closed before
        os._exit(1)


if __name__ == "__main__":
    main()
