"""One HTTP connection: uvicorn's own, with a short way for predictions.

A prediction that arrived whole goes to `Predict.answer` at once and is written when its answer is there: no
task, no ASGI messages, one write. Everything else, and whatever is unusual about a prediction (a body in
several reads, chunks, pipelining, `Expect`, an access log, a rate limit), goes uvicorn's way to the same `Predict`.

Clients send the same head again and again. One that was read before, byte for byte, and is followed by as many
bytes as it announces, and no more, means what it meant: it is not parsed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from httptools import HttpParserError, HttpRequestParser
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from controller.admission.gate import Gate
from controller.http.draining import Drain
from controller.http.request_parser import RequestParser
from controller.http.response_headers import API, CLOSE
from controller.predict import Asked, Predict, Reply

UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"idempotency-key", b"content-encoding", b"origin"})
HEAD_END = b"\r\n\r\n"
KNOWN_HEADS = 1024
KNOWN_HEAD_BYTES = 2048  # a longer one is not kept
PIECE_BYTES = 8192  # parsed at a time: after each, what was asked so far may have to be answered first


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What a head meant.

    Attributes:
        body_bytes: How many bytes it announces.
        keep_alive: Whether the connection is kept afterwards.
    """

    asked: Asked
    body_bytes: int
    keep_alive: bool


class KnownHeads:
    """The heads of predictions that were read lately, by their bytes."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def find(self, data: bytes) -> tuple[KnownHead, bytes] | None:
        """Head and body of a read that is one whole request with a known head."""
        end = data.find(HEAD_END) + len(HEAD_END)
        known = self._heads.get(data[:end])
        return (known, data[end:]) if known and len(data) - end == known.body_bytes else None

    def add(self, data: bytes, body_bytes: int, asked: Asked, keep_alive: bool) -> None:
        """Keep the head of a read in which a prediction with such a body was found, if the read holds nothing else."""
        head = data[: len(data) - body_bytes]
        if len(head) > KNOWN_HEAD_BYTES or head.find(HEAD_END) != len(head) - len(HEAD_END):
            return
        if len(self._heads) >= KNOWN_HEADS:
            self._heads.clear()
        self._heads[head] = KnownHead(asked, body_bytes, keep_alive)


class Outbox:
    """Answers that are ready, written one after the other at the end of the event loop's turn.

    Most of what a write costs is to wake whoever reads; of those that follow each other closely, the first does.
    """

    def __init__(self) -> None:
        self._ready: list[tuple[Connection, bytes, bool]] = []

    def add(self, connection: Connection, answer: bytes, keep_alive: bool) -> None:
        """Have an answer written; without `keep_alive` it is the last on its connection."""
        if not self._ready:
            connection.loop.call_soon(self.flush)
        self._ready.append((connection, answer, keep_alive))

    def flush(self) -> None:
        """Write them now, before anything else is written on their connections or done to these."""
        ready, self._ready = self._ready, []
        for connection, answer, keep_alive in ready:
            transport = connection.transport
            if transport.is_closing():
                continue
            transport.write(answer)
            if not keep_alive:
                transport.close()


class Flow(FlowControl):
    """uvicorn's flow control, which also reads nothing while the caller does not read its answers.

    Args:
        transport: Of the connection.
        resume: Called when reading may go on.
    """

    def __init__(self, transport: asyncio.Transport, resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._resume = resume
        self._waits_for_answer = False

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`."""
        self._waits_for_answer = True
        super().pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless answers wait to be read."""
        if self.read_paused:
            self._waits_for_answer = False
            self._resume_if_free()

    def pause_writing(self) -> None:
        """The caller does not read its answers: take no more requests."""
        super().pause_writing()
        super().pause_reading()

    def resume_writing(self) -> None:
        """The caller has read most of its answers."""
        super().resume_writing()
        if self.read_paused:
            self._resume_if_free()

    def _resume_if_free(self) -> None:
        if not (self.write_paused or self._waits_for_answer):
            self.read_paused = False
            self._resume()


class Connection(HttpToolsProtocol):
    """Serves one connection of the controller."""

    fault = ""  # of the request that is refused, where it is known
    # The parts of a prediction's body so far; None while something else is read.
    _parts: list[bytes] | None = None
    _query = b""
    _is_reading = False
    _read = b""  # what the request began with; empty where it did not begin with a read
    _held: bytes | memoryview = b""  # read, and not parsed yet
    _is_parsing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called at the beginning."""
        super().connection_made(transport)
        self.parser = cast(HttpRequestParser, RequestParser(self))
        self.flow = Flow(transport, lambda: self._resume())
        self._predict: Predict = self.app.services.predict
        self._drain: Drain = self.app.services.drain
        self._paths: frozenset[bytes] = self.app.predict_paths
        self._gate: Gate = self.app.gate
        self._known_heads: KnownHeads = self.app.known_heads
        self.outbox: Outbox = self.app.outbox

    def shutdown(self) -> None:
        """Close it, or have it closed after the answer that is due."""
        self.outbox.flush()
        super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Called for each read."""
        is_between = not self._is_reading and (self.cycle is None or self.cycle.response_complete)
        if is_between and (found := self._known_heads.find(data)):
            self._answer_alike(*found)
            return
        self._read = data if is_between else b""
        self._held = b"".join((self._held, data)) if self._held else data
        self._parse_held()

    def parse(self, piece: bytes | memoryview) -> None:
        """Take in a piece of what was read."""
        super().data_received(cast(bytes, piece))

    def _resume(self) -> None:
        # Not at once: who calls this has not finished with the request that was answered.
        if self._held:
            self.loop.call_soon(self._parse_held)
        elif not self.transport.is_closing():
            self.transport.resume_reading()

    def _parse_held(self) -> None:
        """Parse what was read, until the flow is paused; what is left then waits, and nothing more is read."""
        if self._is_parsing:
            return
        self._is_parsing = True
        try:
            while self._held and not self.flow.read_paused and not self.transport.is_closing():
                self._parse_piece()
        finally:
            self._is_parsing = False
        self._finish_read()

    def _parse_piece(self) -> None:
        held = self._held
        if len(held) <= PIECE_BYTES:
            self._held = b""
            self.parse(held)
            return
        held = memoryview(held)
        self._held = held[PIECE_BYTES:]
        self.parse(held[:PIECE_BYTES])
        self.outbox.flush()  # so that the flow knows of these answers

    def _finish_read(self) -> None:
        if self.transport.is_closing():
            self._held = b""
            return
        if not (self._held or self.flow.read_paused):
            self.transport.resume_reading()
        parts, self._parts = self._parts, None
        if parts is None:
            return
        try:  # not whole yet: uvicorn waits for the rest
            self._begin_cycle()
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        for part in parts:
            super().on_body(part)

    def on_message_begin(self) -> None:
        """Called at a request's first byte."""
        super().on_message_begin()
        self._is_reading = True

    def on_headers_complete(self) -> None:
        """Called once a request's headers are parsed."""
        self._check_headers()
        if self._is_plain_prediction():
            self._parts = []
        else:
            self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        """Called for each part of a body."""
        if self._parts is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        """Called at a request's end."""
        self._is_reading = False
        parts, self._parts = self._parts, None
        if parts is None:
            super().on_message_complete()
            return
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        exchange = self._begin_exchange(keep_alive)
        body = b"".join(parts)
        asked = self._predict.answer(self.headers, self._query, body, self.client, exchange.reply)
        if asked:
            self._known_heads.add(self._read, len(body), asked, keep_alive)

    def _answer_alike(self, known: KnownHead, body: bytes) -> None:
        exchange = self._begin_exchange(known.keep_alive)
        self._predict.answer_alike(known.asked, body, self.client, exchange.reply)

    def _check_headers(self) -> None:
        """Refuse what servers and proxies may understand differently (RFC 9112, sections 3.2 and 6.1)."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            self.fault = "a request of HTTP/1.1 has exactly one Host header"
        elif any(
            name == b"transfer-encoding" and value.lower() != b"chunked" for name, value in self.headers
        ):
            self.fault = "the only Transfer-Encoding that is read is chunked"
        else:
            return
        raise HttpParserError(self.fault)

    def _begin_cycle(self) -> None:
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # such callers do not know it (RFC 9110, section 10.1.1)
        super().on_headers_complete()
        self.headers = []  # for trailers, which are no headers of the request (RFC 9110, section 6.5.1)
        if self._drain.is_announced:
            self.end_after_answer()

    def end_after_answer(self) -> None:
        """Make the answer that is due, if any, the last on this connection."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _begin_exchange(self, keep_alive: bool) -> Exchange:
        exchange = Exchange(self, keep_alive and not self._drain.is_announced)
        self.cycle = exchange  # type: ignore[assignment]  # has what uvicorn looks at
        return exchange

    def _is_plain_prediction(self) -> bool:
        path, _, query = self.url.partition(b"?")
        if path not in self._paths or self.parser.get_method() != b"POST" or b"#" in query:
            return False
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self.config.access_log or self.limit_concurrency is not None:
            return False
        if self._predict.is_rate_limited:
            return False
        self._query = query
        names = {name for name, _ in self.headers}
        return b"content-length" in names and UNUSUAL.isdisjoint(names) and self._gate.passes(self.headers)


class _NoEvent:
    """What uvicorn sets when a connection is lost, where nobody waits for it."""

    def set(self) -> None:
        """Wake nobody."""


class Exchange:
    """A prediction and its answer, in the place of uvicorn's `RequestResponseCycle`."""

    __slots__ = ("_connection", "disconnected", "keep_alive", "response_complete", "response_started")
    message_event = _NoEvent()

    def __init__(self, connection: Connection, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self.response_started = self.response_complete = False
        self.disconnected = False
        self._connection = connection

    def reply(self, reply: Reply) -> None:
        """Have the whole answer written."""
        connection = self._connection
        self.response_started = self.response_complete = True
        if connection.transport.is_closing():
            return
        lines = [_start(reply.status, tuple(connection.server_state.default_headers))]
        for name, value in reply.headers:
            lines += (name, b": ", value, b"\r\n")
        if CLOSE in reply.headers:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append(b"connection: close\r\n")
        lines += (b"content-length: %d\r\n\r\n" % len(reply.body), reply.body)
        connection.outbox.add(connection, b"".join(lines), self.keep_alive)
        connection.on_response_complete()


@lru_cache(maxsize=64)
def _start(status: int, defaults: Sequence[tuple[bytes, bytes]]) -> bytes:
    """What answers of a status begin with; `defaults`, which hold the date, change each second."""
    return STATUS_LINE[status] + b"".join([b"%b: %b\r\n" % header for header in (*defaults, *API)])
