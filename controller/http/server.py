"""The server of `modelyard serve`: uvicorn with several listeners per address, and a graceful stop.

First the stop is announced (`lame_duck_s`), then new connections are refused, then predictions are refused, and
waiting callers are answered.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import time
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

from uvicorn import Config, Server

from app.settings import ControllerSettings
from controller.http.asgi import Controller
from controller.http.connection import Connection, Connections, check_uvicorn

logger = logging.getLogger(__name__)
# Delay from the last accepted connection to the first refusal, for requests that have arrived but are still unread.
LAST_READ_S = 0.1
CLOSE_S = 5  # after the end of the last wait: for pending writes to Redis and slow readers
# A listener accepts one connection per event loop iteration (libuv's `uv__server_io`), and an iteration of a busy
# controller takes milliseconds: the last of a few hundred simultaneous connections would wait most of a second.
LISTENERS = 16
NEVER_S = 10**9  # `Connections` ends idle connections; uvicorn's timer would not see predictions


class ControllerServer(Server):
    """The server of a controller.

    Args:
        app: The application of `create_app`.
        access_log: Whether to log every request.

    Attributes:
        connections: The open connections.
    """

    def __init__(self, app: Controller, settings: ControllerSettings, *, access_log: bool) -> None:
        self.connections = Connections(app, access_log=access_log)
        self._app = app
        self._lame_duck_s = settings.lame_duck_s
        self._stops_at_s: float | None = None
        http: Any = partial(Connection, self.connections)
        config = Config(
            app,
            host=settings.host,
            port=settings.port,
            http=http,
            ws="none",
            access_log=access_log,
            log_config=None,
            # No code uses the caller's address from proxy headers, and the server's name helps only attackers.
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=NEVER_S,
            timeout_graceful_shutdown=math.ceil(settings.drain_s) + CLOSE_S,
            callback_notify=self._look,
            timeout_notify=0,  # called at each clock tick, once a second
        )
        super().__init__(config)

    def listen(self) -> list[socket.socket]:
        """Bind every address of the host, several times; for `run` and `serve`.

        Raises:
            OSError: An address is in use, or does not belong to this machine.
        """
        host, port = self.config.host, self.config.port
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets = []
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            sockets += [
                listener,
                *(socket.socket(fileno=os.dup(listener.fileno())) for _ in range(LISTENERS - 1)),
            ]
        logger.info("the address is http://%s:%d", f"[{host}]" if ":" in host else host, port)
        return sockets

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Announce the stop at the first SIGTERM; stop immediately at any other signal, such as SIGINT from Ctrl-C."""
        if sig == signal.SIGTERM and self.started and self._lame_duck_s and self._stops_at_s is None:
            self._stops_at_s = time.monotonic() + self._lame_duck_s
            self._app.services.drain.is_announced = True
        else:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for open requests, and close."""
        self._app.services.drain.is_announced = True
        await self._stop_listening(sockets or [])
        await asyncio.sleep(LAST_READ_S)
        self._app.drain()
        await super().shutdown(sockets)

    async def _stop_listening(self, sockets: list[socket.socket]) -> None:
        # Otherwise connections accepted by the kernel but not yet by uvicorn would be reset.
        listening = [socket.socket(fileno=os.dup(each.fileno())) for each in sockets[::LISTENERS]]
        for server in self.servers:
            server.close()
        accepted = []
        for each in listening:
            each.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    accepted.append(each.accept()[0])
            each.close()
        for connection in accepted:
            connection.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._new_connection, connection)

    def _new_connection(self) -> Connection:
        return Connection(self.connections, self.config, self.server_state, self.lifespan.state)

    async def _look(self) -> None:
        """Each second, end overdue connections and check whether to stop."""
        self.connections.end_overdue()
        if self._stops_at_s is not None and self._stops_at_s <= time.monotonic():
            self.handle_exit(signal.SIGTERM, None)


def make_server(app: Controller, settings: ControllerSettings, *, access_log: bool) -> ControllerServer:
    """A server for the application of `create_app`."""
    check_uvicorn()
    return ControllerServer(app, settings, access_log=access_log)
