"""What stands between a pool and its Redis loses nothing unless it is told to."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path

from faults.proxy import Proxy

ANSWER = b"y" * 60_000
N_TRIES = 30  # it was lost in every third


def write_on(caller: socket.socket) -> None:
    with suppress(OSError):
        for _ in range(200):
            caller.send(b"x")


def read_to_the_end(caller: socket.socket) -> bytes:
    read = bytearray()
    with suppress(ConnectionResetError):  # how it ends where the caller's words were never read
        while data := caller.recv(65536):
            read += data
    return bytes(read)


def test_what_a_server_answered_before_it_died_arrives(tmp_path: Path) -> None:
    """Though the caller's next words, which nobody takes any more, end the connection meanwhile."""
    with socket.socket(socket.AF_UNIX) as listener, Proxy(tmp_path / "server", tmp_path / "way") as way:
        listener.bind(str(tmp_path / "server"))
        listener.listen()
        for _ in range(N_TRIES):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(way.url.removeprefix("unix://"))
                server, _ = listener.accept()
                writer = threading.Thread(target=write_on, args=(caller,))
                writer.start()
                server.sendall(ANSWER)
                server.close()
                arrived = read_to_the_end(caller)
                writer.join()
            assert arrived == ANSWER
