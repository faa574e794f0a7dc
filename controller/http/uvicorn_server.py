"""uvicorn with an end to its patience: limits to a request's time and head, which uvicorn itself does not have.

A caller who sends a byte a minute would keep a connection for ever, and one who never ends a header would fill the
memory. Nothing is done per request for it but noting when one began; a look each second finds who takes too long.
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
from types import FrameType

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.errors import HeadTooLargeError, MalformedRequestError, ModelyardError, RequestTimeoutError
from app.settings import ControllerSettings
from controller.http.fast_protocol import PIECE_BYTES, Connection, Exchange
from controller.http.lingering import LingeringTransport
from controller.http.problems import problem
from controller.http.response_headers import API
from controller.main import Controller

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
KEEP_ALIVE_S = 5  # of a connection between two requests, and up to a second more
# Between the last accepted connection and the first refusal: for requests that have arrived and are not read yet.
LAST_READ_S = 0.1
CLOSE_S = 5  # after the last wait was ended: for what is being stored, and for slow readers
TICKS_PER_LOOK = 10  # of a tenth of a second each
# A listener accepts one connection a turn of the event loop (libuv's `uv__server_io`), and a turn of a busy controller
# takes milliseconds: the last of a few hundred who come at once would be let in after most of a second.
LISTENERS = 16

# A stranger's nonsense is counted and no line in the log, which anybody could fill; what breaks in here is one.
_connection_logger = logging.getLogger(f"{__name__}.connections")
_connection_logger.setLevel(logging.ERROR)


class LimitedProtocol(Connection):
    """One connection, which knows since when it has been waiting for the rest of a request."""

    _head_is_too_large = False
    _in_head = False
    _begun = 0  # requests that began in the present piece
    _unread_bytes = 0  # of a head, or of what stands around chunks, that have come and led to nothing yet
    _refusal: ModelyardError | None = None  # of a request behind others which are still to be answered
    _unsent_bytes = 0  # as the last look found them
    _unsent_since_s = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request from now on."""
        self.logger = _connection_logger
        linger_s = self.app.services.settings.request_timeout_s
        super().connection_made(LingeringTransport(transport, self, self._is_mid_request, linger_s))
        self._reading_since_s: float | None = time.monotonic()
        self._idle_since_s: float | None = None

    def parse(self, piece: bytes | memoryview) -> None:
        """Take in a piece of what was read."""
        if self._refusal:
            return
        is_between = not self._is_reading
        self._begun = 0
        super().parse(piece)
        # A head that began behind another request counts from the next piece on: only its own bytes are its size.
        if self._is_reading and (self._begun == 0 or (self._begun == 1 and is_between)):
            self._unread_bytes += len(piece)
            if self._unread_bytes > MAX_HEAD_BYTES:
                self._refuse(_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._begun += 1
        self._in_head, self._unread_bytes = True, 0
        self._reading_since_s, self._idle_since_s = time.monotonic(), None

    def on_headers_complete(self) -> None:
        """The head of a request is there; what is raised here only stops the parser."""
        if len(self.headers) > MAX_HEADERS or (
            self._unread_bytes + 2 * PIECE_BYTES > MAX_HEAD_BYTES
            and len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES
        ):
            self._head_is_too_large = True
            # Not the one below: an error that is raised again and again keeps all that it has come through.
            raise HeadTooLargeError("")
        super().on_headers_complete()
        self._in_head, self._unread_bytes = False, 0

    def on_body(self, body: bytes) -> None:
        """A part of a body is there."""
        self._unread_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The whole request is there."""
        super().on_message_complete()
        self._reading_since_s = None

    def _begin_exchange(self, keep_alive: bool) -> Exchange:
        self._reading_since_s = self._idle_since_s = None
        return super()._begin_exchange(keep_alive)

    def on_response_complete(self) -> None:
        """An answer is written: as uvicorn's own, but that the look each second is its timer."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if self._refusal:
            self._refuse(self._refusal)
            return
        self.flow.resume_reading()
        if self._reading_since_s is None:  # else the next request has begun to come
            self._idle_since_s = time.monotonic()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or what was refused, in our own format."""
        fault = MalformedRequestError(self.fault) if self.fault else _MALFORMED
        self._refuse(_HEAD_TOO_LARGE if self._head_is_too_large else fault)

    def shutdown(self) -> None:
        """Close it, or have it closed after the answer that is due; a request that has begun to come is answered."""
        if self._in_head and not self.transport.is_closing():
            self.outbox.flush()
        else:
            super().shutdown()

    def end_if_overdue(self, request_timeout_s: float) -> None:
        """End a connection whose caller takes longer than this to send a request or to read an answer, or idles."""
        now_s = time.monotonic()
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes:
            if unsent_bytes != self._unsent_bytes:
                self._unsent_bytes, self._unsent_since_s = unsent_bytes, now_s
            elif self._unsent_since_s < now_s - request_timeout_s:
                self.transport.abort()
            return
        self._unsent_bytes = 0
        if self.transport.is_closing():
            return
        if self._idle_since_s is not None and self._idle_since_s < now_s - KEEP_ALIVE_S:
            self.transport.close()
        if self._reading_since_s is None or self._reading_since_s > now_s - request_timeout_s:
            return
        if self.pipeline:
            self._reading_since_s = time.monotonic()  # it waits for us: nothing is read before its turn
            return
        if self._in_head or not self._is_idle():
            self._refuse(_TIMEOUT)
        else:
            self.transport.close()  # nothing was asked

    def _is_mid_request(self) -> bool:
        return self._is_reading or bool(self._held)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, error: ModelyardError) -> None:
        self.outbox.flush()
        if self.transport.is_closing():
            return
        if not self._in_head and self.pipeline:
            self.pipeline.popleft()  # the one that is refused
        elif not self._in_head and self.cycle is not None and self.cycle.response_started:
            self.transport.abort()  # in the middle of its answer, or after it
            return
        if self.pipeline or (self._in_head and not self._is_idle()):
            self._refusal, self._reading_since_s = error, None  # after the answers to the requests before it
            self.flow.pause_reading()
            return
        self.app.services.metrics.rejected(error.code)
        status, headers, body = problem(error)
        length = (b"content-length", str(len(body)).encode())
        lines = [*headers, *API, length, (b"connection", b"close")]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in lines)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + body)
        assert isinstance(self.transport, LingeringTransport)
        self.transport.linger()


class ControllerServer(Server):
    """The server of a controller.

    Args:
        config: For uvicorn.
        app: Told when the server will stop, and when it stops. uvicorn tells it only once no request is open.
        request_timeout_s: Seconds that a request may take to arrive.
        lame_duck_s: Seconds between SIGTERM and the stop, in which everything is served as before.
    """

    def __init__(
        self, config: Config, app: Controller, *, request_timeout_s: float, lame_duck_s: float
    ) -> None:
        super().__init__(config)
        self._app = app
        self._request_timeout_s = request_timeout_s
        self._lame_duck_s = lame_duck_s
        self._stops_at_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Announce the stop at the first SIGTERM; stop now at any other signal, SIGINT being a person's Ctrl-C."""
        if sig == signal.SIGTERM and self.started and self._lame_duck_s and self._stops_at_s is None:
            self._stops_at_s = time.monotonic() + self._lame_duck_s
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, several times on the same sockets."""
        await super().startup(sockets)
        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        for listening in [each for server in self.servers for each in server.sockets]:
            for _ in range(LISTENERS - 1):
                again = socket.socket(fileno=os.dup(listening.fileno()))
                self.servers.append(await loop.create_server(self._new_protocol, sock=again, backlog=backlog))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, wait for open requests, and close."""
        self._announce_stop()
        await self._stop_listening()
        await asyncio.sleep(LAST_READ_S)
        self._app.drain()
        await super().shutdown(sockets)

    async def _stop_listening(self) -> None:
        # Connections that the kernel has accepted and uvicorn has not would be reset.
        listening = [socket.socket(fileno=os.dup(each.fileno())) for each in self.servers[0].sockets]
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
            await asyncio.get_running_loop().connect_accepted_socket(self._new_protocol, connection)

    def _new_protocol(self) -> LimitedProtocol:
        return LimitedProtocol(self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        """Each second, end the connections that take too long; see whether it is time to stop."""
        if counter % TICKS_PER_LOOK == 0:
            for connection in list(self.server_state.connections):
                if isinstance(connection, LimitedProtocol):
                    connection.end_if_overdue(self._request_timeout_s)
        if self._stops_at_s is not None:
            self._announce_stop()
            if self._stops_at_s <= time.monotonic():
                self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def _announce_stop(self) -> None:
        if self._app.services.drain.is_announced:
            return
        self._app.announce_stop()
        for connection in self.server_state.connections:
            if isinstance(connection, LimitedProtocol):
                connection.end_after_answer()


def make_server(app: Controller, settings: ControllerSettings, *, access_log: bool) -> ControllerServer:
    """A server for the application of `create_app`."""
    config = Config(
        app,
        host=settings.host,
        port=settings.port,
        http=LimitedProtocol,
        ws="none",
        access_log=access_log,
        log_config=None,
        # Nothing here goes by the caller's address, and the server's name helps only attackers.
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + CLOSE_S,
    )
    return ControllerServer(
        config, app, request_timeout_s=settings.request_timeout_s, lame_duck_s=settings.lame_duck_s
    )


_HEAD_TOO_LARGE = HeadTooLargeError(
    f"the request's line and headers are larger than {MAX_HEAD_BYTES} bytes, or more than {MAX_HEADERS} headers"
)
_MALFORMED = MalformedRequestError("this is not an HTTP/1.1 request that an origin server can answer")
_TIMEOUT = RequestTimeoutError("the request did not arrive in time; send it in one go")
