"""One HTTP connection: uvicorn's own, with a short way for predictions.

A prediction that arrived whole goes to `Predict.answer` at once and is written when its answer is there: no
task, no ASGI messages, one write. Everything else, and whatever is unusual about a prediction (a body in
several reads, chunks, pipelining, `Expect`, an access log, a rate limit), goes uvicorn's way to the same `Predict`.
"""

from __future__ import annotations

from typing import Any

from httptools import HttpParserError
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from controller.headers import API
from controller.predict import CLOSE, Reply

PATH = b"/predict"
ALWAYS = b"".join(b"%b: %b\r\n" % header for header in API)
UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"idempotency-key"})


class Connection(HttpToolsProtocol):
    """Serves one connection of the controller."""

    # The parts of a prediction's body so far; None while something else is read.
    _parts: list[bytes] | None = None
    _query = b""

    def data_received(self, data: bytes) -> None:
        """Called for each read."""
        super().data_received(data)
        parts, self._parts = self._parts, None
        if parts is None:
            return
        try:  # not whole yet: uvicorn waits for the rest
            super().on_headers_complete()
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        for part in parts:
            super().on_body(part)

    def on_headers_complete(self) -> None:
        """Called once a request's headers are parsed."""
        if self._is_plain_prediction():
            self._parts = []
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Called for each part of a body."""
        if self._parts is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called at a request's end."""
        parts, self._parts = self._parts, None
        if parts is None:
            super().on_message_complete()
            return
        exchange = Exchange(self)
        self.cycle = exchange  # type: ignore[assignment]  # has what uvicorn looks at
        self.app.services.predict.answer(self.headers, self._query, b"".join(parts), exchange.reply)

    def _is_plain_prediction(self) -> bool:
        path, _, query = self.url.partition(b"?")
        if path != PATH or self.parser.get_method() != b"POST" or b"#" in query:
            return False
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.access_log or self.limit_concurrency is not None:
            return False
        if self.app.services.predict.is_rate_limited:
            return False
        self._query = query
        names = {name for name, _ in self.headers}
        return b"content-length" in names and UNUSUAL.isdisjoint(names)


class Exchange:
    """A prediction and its answer, in the place of uvicorn's `RequestResponseCycle`."""

    def __init__(self, connection: Connection) -> None:
        parser = connection.parser
        self.keep_alive = parser.get_http_version() != "1.0" and parser.should_keep_alive()
        self.response_started = self.response_complete = False
        self.disconnected = False
        self.message_event: Any = self  # uvicorn sets it when the connection is lost
        self._connection = connection

    def set(self) -> None:
        """Nobody waits for an event here."""

    def reply(self, reply: Reply) -> None:
        """Write the whole answer."""
        connection = self._connection
        self.response_started = self.response_complete = True
        if connection.transport.is_closing():
            return
        lines = [STATUS_LINE[reply.status]]
        for name, value in (*connection.server_state.default_headers, *reply.headers):
            lines += (name, b": ", value, b"\r\n")
        self.keep_alive = self.keep_alive and CLOSE not in reply.headers
        if not self.keep_alive and CLOSE not in reply.headers:
            lines.append(b"connection: close\r\n")
        lines += (ALWAYS, b"content-length: %d\r\n\r\n" % len(reply.body), reply.body)
        connection.transport.write(b"".join(lines))
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()
