"""A way to Redis that can be cut at a chosen answer, hold a chosen command back, or go dead without a word."""

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
    """Passes a unix socket on to another, byte for byte, until told to cut.

    Args:
        target: Redis's socket.
        path: Where to listen.

    Attributes:
        held: What was held back, at any time.
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
        self._age = 0  # connections of an earlier age stay open and pass nothing on

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
        """Drop the next answer of Redis for which `cuts` is true, and its connection; just once.

        `cuts` is called in the connection's thread, before anything of the answer is passed on.
        """
        self._cuts = cuts

    def hold_at(self, holds: Holds) -> None:
        """Keep the next command for which `holds` is true, and what follows it on its connection; just once.

        It comes to Redis after `let_through`, even where its sender has closed the connection by then. `held` has it.
        """
        self._may_pass.clear()
        self._holds = holds

    def let_through(self) -> None:
        """Pass on what is held."""
        self._may_pass.set()

    def lead_to(self, target: Path) -> None:
        """Pass new connections on to another server, as a name does after a failover; those that are open stay."""
        self._target = target

    def go_dead(self) -> None:
        """Leave all connections open and pass nothing on, now or ever; new ones too, until `revive`."""
        self._is_dead, self._age = True, self._age + 1

    def revive(self) -> None:
        """Pass new connections on again. Those from before stay dead, as behind a firewall that forgot them."""
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
            # What Redis has answered is still under way, even if it has just been killed.
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
            return
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
