"""One HTTP connection: it wraps uvicorn's protocol, receives every byte first, and forwards other requests to uvicorn.

Requests are processed one at a time. A plain prediction is passed directly to `predict` when it has arrived completely,
without ASGI messages, and is answered with one write. Every other request is forwarded to uvicorn with its body in
parts; the next request waits for its answer.

It adds to uvicorn: limits on the size and time of a request, strict request framing (`framing`), backpressure for
callers that do not read their answers, and a lingering close.

Saves: two thirds of the CPU time per prediction at 64 connections (65 instead of 200 µs), and with it 40 % of the
throughput of a pool whose worker is not the limit; about a third at one connection.
Relies on: `HttpToolsProtocol` takes `(config, server_state, app_state)`, like every class given to uvicorn as `http=`.
It passes `app_state` to the application in each request's scope, and adds itself to `server_state.connections`, where a
stopping server finds it. `server_state.default_headers` holds the date. No other member is used.
Breaks if: one of these changes; `check_uvicorn` detects that at start.
Switch off: with `MODELYARD_FAST_HTTP=false` uvicorn and the ASGI application answer all requests; the limits stay.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.server_errors import HeadTooLargeError, MalformedRequestError, ModelyardError, RequestTimeoutError
from controller.admission.audit_log import Client
from controller.http.asgi import Controller
from controller.http.framing import (
    HEAD_END,
    MAX_HEAD_BYTES,
    ChunkedBody,
    Head,
    SizedBody,
    check_beginning,
    head_too_large,
)
from controller.http.prediction_request import KnownHead
from controller.http.problems import problem
from controller.http.replies import Reply
from controller.http.response_headers import API, CLOSE, Headers
from controller.predict import Request

LINGER_BYTES = 256 * 2**20
STATE_KEY = "connection"  # key in the scope's state: the connection of the request
_CONTINUE = b"HTTP/1.1 100 "


class Connections:
    """State shared by the connections of one server.

    Args:
        app: The application; its lifespan is open before the first connection.
        access_log: Whether uvicorn logs every request; all requests then go through uvicorn.

    Attributes:
        open: The open connections.
    """

    def __init__(self, app: Controller, *, access_log: bool) -> None:
        self.app = app
        self.access_log = access_log
        self.open: set[Connection] = set()

    def end_overdue(self) -> None:
        """End connections whose caller is idle, or too slow in sending a request or reading an answer."""
        now_s = time.monotonic()
        for connection in list(self.open):
            connection.end_if_overdue(now_s)


class Connection(asyncio.Protocol):
    """One connection: the protocol of its transport, and at the same time the transport of uvicorn's protocol.

    Args:
        shared: State shared with the other connections; the other arguments are uvicorn's.
    """

    def __init__(
        self,
        shared: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        services = shared.app.services
        self._shared = shared
        self._metrics = services.metrics
        self._drain = services.drain
        self._request_timeout_s = services.settings.request_timeout_s
        self._keep_alive_s = services.settings.keep_alive_s
        self._predict = services.predict
        self._known_heads = None if shared.access_log else services.known_heads
        self._server_state = server_state
        self._stock = HttpToolsProtocol(config, server_state, {**app_state, STATE_KEY: self}, _loop)
        self._held = b""  # bytes read, but neither answered nor forwarded yet
        self._body: SizedBody | ChunkedBody | None = None  # the rest of the body of the present request
        self._prediction: Request | None = None  # a plain prediction whose body arrives in parts
        self._parts: list[bytes] = []  # of that body
        self._is_answering = False  # a request is being answered; the next one waits
        self._stock_answers = False  # uvicorn answers that request
        self._stock_began = False  # uvicorn has begun its answer
        self._keep_alive = True  # whether to keep the connection after a prediction
        self._stock_is_full = False  # uvicorn has paused reading the body
        self._writing_is_paused = False
        self._reading_is_paused = False
        self._is_advancing = False
        self._has_answered = False
        self._began_at_s: float | None = None  # when an incomplete request began
        self._ended_at_s: float | None = None  # when the last answer was written
        self._idle_since_s = time.monotonic()
        self._unsent_bytes = 0  # at the last check
        self._unsent_since_s = 0.0
        self._discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Open the connection; called by asyncio."""
        self.transport, self.get_extra_info = transport, transport.get_extra_info
        peer = transport.get_extra_info("peername")
        self._client: Client = (peer[0], peer[1]) if isinstance(peer, tuple) else None
        self._shared.open.add(self)
        self._stock.connection_made(cast(asyncio.Transport, self))

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the connection was lost; called by asyncio."""
        self._shared.open.discard(self)
        self._ended_at_s, self._held, self._parts = time.monotonic(), b"", []
        self._stock.connection_lost(exc)
        del self._stock  # it refers to this connection: a cycle would need the garbage collector

    def pause_writing(self) -> None:
        """Stop reading requests, because the caller does not read its answers."""
        self._writing_is_paused = True
        self._stock.pause_writing()
        self._read_or_pause()

    def resume_writing(self) -> None:
        """Resume reading, because the caller has read most of its answers."""
        self._writing_is_paused = False
        self._stock.resume_writing()
        asyncio.get_running_loop().call_soon(self._advance)

    def data_received(self, data: bytes) -> None:
        """Process received bytes; called by asyncio."""
        if self._ended_at_s is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_BYTES:
                self.transport.abort()
            return
        self._held = self._held + data if self._held else data
        self._advance()

    def _advance(self) -> None:
        """Answer or forward the received requests, one at a time."""
        if self._is_advancing:  # an immediate answer calls this method again
            return
        self._is_advancing = True
        try:
            while self._held and self._ended_at_s is None:
                if self._body is not None:
                    if not self._receive_body(self._body):
                        break
                elif self._is_answering or self._writing_is_paused or not self._begin_request():
                    break
        except (HeadTooLargeError, MalformedRequestError) as error:
            self._refuse(error)
        finally:
            self._is_advancing = False
        self._read_or_pause()

    def _begin_request(self) -> bool:
        """Answer or forward the next request, if its head has arrived."""
        if self._held[0] in b"\r\n":  # empty lines before a request (RFC 9112, section 2.2)
            self._held = self._held.lstrip(b"\r\n")
            if not self._held:
                return False
        held = self._held
        end = held.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END) or end > MAX_HEAD_BYTES:
            self._await_head()
            return False
        data, heads = held[:end], self._known_heads
        head, known = None, heads.by_data.get(data) if heads is not None else None
        if heads is not None and known is None:
            head = Head(data)
            known = heads.read(data, head, self._client)
        body_end = end + (known.body_bytes if known else 0)
        if known is None or (len(held) < body_end and not self._admit(known)):
            self._forward(head or Head(data), held[end:])
            return True
        self._is_answering, self._keep_alive = True, known.keep_alive
        if len(held) < body_end:
            self._await_body(SizedBody(known.body_bytes), held[end:])
            return True
        self._held, self._began_at_s = held[body_end:], None
        self._predict.start(known.asked, held[end:body_end], self._client, self)
        return True

    def _admit(self, known: KnownHead) -> bool:
        """Admit a prediction before its body arrives; uvicorn gets one that is refused, and discards its body."""
        try:
            self._prediction = self._predict.admit(known.asked, known.body_bytes, self._client)
        except ModelyardError:
            return False
        return True

    def _await_head(self) -> None:
        if len(self._held) > MAX_HEAD_BYTES:
            raise head_too_large()
        if self._began_at_s is None:
            self._began_at_s = time.monotonic()
            check_beginning(self._held)

    def answer(self, reply: Reply) -> None:
        """Write the answer to a prediction."""
        self._is_answering = False
        if self._ended_at_s is not None:
            return
        ends = CLOSE in reply.headers or not self._keep_alive or self._drain.is_announced
        self._write(reply.status, reply.headers, reply.body, ends)
        self._answered(ends)

    def _write(self, status: int, headers: Headers, body: bytes, ends: bool) -> None:
        lines = [_start(status, tuple(self._server_state.default_headers))]
        for header in headers:
            if header != CLOSE:
                lines += (header[0], b": ", header[1], b"\r\n")
        if ends:
            lines.append(b"connection: close\r\n")
        lines += (b"content-length: %d\r\n\r\n" % len(body), body)
        self.transport.write(b"".join(lines))

    def _answered(self, ends: bool) -> None:
        self._has_answered, self._idle_since_s = True, time.monotonic()
        if ends:
            self._end()
        elif self._held:
            self._advance()

    def _forward(self, head: Head, rest: bytes) -> None:
        self._is_answering = self._stock_answers = True
        self._stock_began = False
        self._await_body(head.body, rest)
        self._stock.data_received(head.for_uvicorn())

    def _await_body(self, body: SizedBody | ChunkedBody | None, rest: bytes) -> None:
        """Continue with the body of a request; `rest` are the bytes after its head."""
        self._held, self._body = rest, body
        if body is None:
            self._began_at_s = None
        elif self._began_at_s is None:
            self._began_at_s = time.monotonic()

    def _receive_body(self, body: SizedBody | ChunkedBody) -> bool:
        """Keep or forward the received part of a body; False if more bytes must arrive first."""
        part, rest = body.feed(self._held)
        is_part = len(rest) < len(self._held)
        self._held = rest
        if body.is_whole:
            self._body = self._began_at_s = None
            self._idle_since_s = time.monotonic()  # if it was answered before its body ended
        if self._prediction:
            self._parts.append(part)
            if body.is_whole:
                self._predict.start_admitted(self._prediction, self._parts, self)
                self._prediction, self._parts = None, []
        elif part:
            self._stock.data_received(part)
        return is_part

    def application_is_done(self) -> None:
        """Continue after the application has returned: uvicorn has written the answer, or writes it immediately."""
        asyncio.get_running_loop().call_soon(self._stock_answered)

    def _stock_answered(self) -> None:
        self._is_answering = self._stock_answers = False
        self._answered(ends=False)

    def extend_time(self) -> None:
        """Restart the time limit of a request whose body is large and arrives in parts."""
        if self._began_at_s is not None:
            self._began_at_s = time.monotonic()

    # The transport interface for uvicorn's protocol.

    def write(self, data: bytes) -> None:
        """Write a part of uvicorn's answer."""
        if self._ended_at_s is None:
            self._stock_began = self._stock_began or not data.startswith(_CONTINUE)
            self.transport.write(data)

    def close(self) -> None:
        """Close, unless a request unknown to uvicorn is still unanswered; that happens while the server stops."""
        if self._stock_answers or not (self._is_answering or self._held):
            self._end()

    def is_closing(self) -> bool:
        """Whether nothing more will be written."""
        return self._ended_at_s is not None

    def pause_reading(self) -> None:
        """Pause forwarding the body of uvicorn's request."""
        self._stock_is_full = True
        self._read_or_pause()

    def resume_reading(self) -> None:
        """Resume forwarding the body."""
        self._stock_is_full = False
        self._read_or_pause()

    def _end(self) -> None:
        """Close after all written bytes are sent, so that the caller receives them (RFC 9112, section 9.6).

        A socket closed with unread bytes answers further bytes with a reset, which discards the answer. So after an
        incomplete request only the sending side is closed, and further bytes are read and discarded. That ends when the
        caller closes, when the time limit of a request has passed, or after `LINGER_BYTES`.
        """
        if self._ended_at_s is not None:
            return
        self._ended_at_s = time.monotonic()
        self._parts = []
        if not self._held and self._body is None:
            self.transport.close()
            return
        self._held = b""
        if self._reading_is_paused:
            self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _refuse(self, error: ModelyardError) -> None:
        """Refuse an incomplete or invalid request and end the connection."""
        if self._stock_answers and self._stock_began:
            self.transport.abort()  # an answer has already begun
            return
        self._metrics.rejected(error.code)
        status, headers, body = problem(error)
        self._write(status, headers, body, ends=True)
        self._end()

    def end_if_overdue(self, now_s: float) -> None:
        """End the connection if its caller is idle, or too slow in sending a request or reading an answer."""
        before_s = now_s - self._request_timeout_s
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes:
            if unsent_bytes != self._unsent_bytes:
                self._unsent_bytes, self._unsent_since_s = unsent_bytes, now_s
            elif self._unsent_since_s < before_s:
                self.transport.abort()
            return
        self._unsent_bytes = 0
        if self._ended_at_s is not None:
            if self._ended_at_s < before_s:
                self.transport.abort()
        elif self._began_at_s is not None:
            if self._began_at_s < before_s:
                self._give_up()
        elif not self._is_answering and self._idle_since_s < (
            now_s - self._keep_alive_s if self._has_answered else before_s
        ):
            self._end()

    def _give_up(self) -> None:
        if self._body is None or self._is_answering:
            self._refuse(RequestTimeoutError("the request did not arrive in time; send it without pauses"))
        else:
            self._end()  # it was answered before its body arrived

    def _read_or_pause(self) -> None:
        if self._ended_at_s is not None:
            return
        next_waits = self._is_answering and self._body is None and bool(self._held)
        pause = self._writing_is_paused or self._stock_is_full or next_waits
        if pause != self._reading_is_paused:
            self._reading_is_paused = pause
            if pause:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()


def check_uvicorn() -> None:
    """Check at start that uvicorn's protocol has the interface that this module relies on.

    Raises:
        RuntimeError: It has not; pyproject names the tested versions.
    """
    taken = list(inspect.signature(HttpToolsProtocol).parameters)
    needed = {"data_received", "pause_writing", "resume_writing", "connection_made", "connection_lost"}
    state = vars(ServerState())
    if taken[:3] != ["config", "server_state", "app_state"] or not needed <= vars(HttpToolsProtocol).keys():
        raise RuntimeError("uvicorn's HttpToolsProtocol is another than controller/http/connection.py holds")
    if not {"connections", "default_headers"} <= state.keys():
        raise RuntimeError("uvicorn's ServerState is another than controller/http/connection.py reads")


@lru_cache(maxsize=64)
def _start(status: int, defaults: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The first bytes of answers with a status; `defaults` include the date and change each second."""
    line = b"HTTP/1.1 %d %b\r\n" % (status, HTTPStatus(status).phrase.encode())
    return line + b"".join([b"%b: %b\r\n" % header for header in (*defaults, *API)])
