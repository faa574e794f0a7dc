"""A proxy for Redis that can cut a chosen answer, hold back a chosen command, or drop all traffic silently."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CHUNK_BYTES = 1 << 16
Cuts = Callable[[bytes], bool]
Holds = Callable[[bytes], bool]


class Proxy:
    """Forwards one unix socket to another, byte for byte, until told to cut.

    Args:
        target: Redis's socket.
        path: Where to listen.

    Attributes:
        held: All data that was ever held back.
    """

    def __init__(self, target: Path, path: Path) -> None:
        self.url = f"unix://{path}"
        self._target = target
        self._path = path
        self._cuts: Cuts | None = None
        self._holds: Holds | None = None
        self._may_pass = threading.Event()
        self.held: list[bytes] = []
        self._is_dead = False
        self._age = 0  # connections of an earlier age stay open and forward nothing

    def __enter__(self) -> Proxy:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.let_through()
        self._path.unlink(missing_ok=True)

    def cut_at(self, cuts: Cuts) -> None:
        """Drop the next answer of Redis for which `cuts` is true, and its connection; once.

        `cuts` is called in the connection's thread, before any of the answer is forwarded.
        """
        self._cuts = cuts

    def hold_at(self, holds: Holds) -> None:
        """Hold back the next command for which `holds` is true, and the rest of its connection; once.

        Redis receives it after `let_through`, even if the sender has closed the connection. It is added to `held`.
        """
        self._may_pass.clear()
        self._holds = holds

    def let_through(self) -> None:
        """Forward the held data."""
        self._may_pass.set()

    def lead_to(self, target: Path) -> None:
        """Forward new connections to another server, like a DNS name after a failover; open ones stay."""
        self._target = target

    def go_dead(self) -> None:
        """Keep all connections open and forward nothing; also for new connections, until `revive`."""
        self._is_dead, self._age = True, self._age + 1

    def revive(self) -> None:
        """Forward new connections again. Earlier ones stay dead, as behind a firewall that lost its state."""
        self._is_dead, self._age = False, self._age + 1

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(str(self._target))
            except OSError:
                client.close()
                server.close()
                continue
            for source, sink, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pass_on, args=(source, sink, is_answer, self._age), daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_answer: bool, age: int) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if self._is_dead or age != self._age:
                    continue
                if is_answer and self._cuts and self._cuts(data):
                    self._cuts = None
                    break
                if not is_answer and self._holds and self._holds(data):
                    self._holds = None
                    self.held.append(data)
                    self._may_pass.wait()
                sink.sendall(data)
        if not is_answer:
            # Answers of Redis may still be in flight, even if it has just been killed.
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            return
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
