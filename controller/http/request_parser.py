"""httptools' request parser, without its upgrades: an offer of another protocol is ignored (RFC 9110, section 7.8).

Java's HTTP client offers `h2c` with its first request, whatever that is. httptools takes such an offer for accepted:
it stops at the end of the head, and the body would be read as the next request.
"""

from __future__ import annotations

from typing import Protocol

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser


class Callbacks(Protocol):
    """What uvicorn's connection is for httptools, and the parts of a head that it collects."""

    url: bytes
    headers: list[tuple[bytes, bytes]]

    def on_message_begin(self) -> None:
        """A request begins."""

    def on_url(self, url: bytes) -> None:
        """A part of its target."""

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or one trailer."""

    def on_headers_complete(self) -> None:
        """Its head is there."""

    def on_body(self, body: bytes) -> None:
        """A part of its body."""

    def on_message_complete(self) -> None:
        """It is there whole."""


class RequestParser:
    """Calls back for each part of each request of a connection.

    Args:
        connection: Whose methods are called.
    """

    def __init__(self, connection: Callbacks) -> None:
        self._connection = connection
        # httptools calls these; the others go to the connection without a detour.
        self.on_message_begin = connection.on_message_begin
        self.on_url = connection.on_url
        self.on_header = connection.on_header
        self.on_body = connection.on_body
        self._renew()

    def on_headers_complete(self) -> None:
        """Called by httptools at the end of a head; one with an offer is read again without it."""
        if not self.should_upgrade():
            self._connection.on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by httptools at the end of a request, and where it stops for an upgrade."""
        if not self.should_upgrade():
            self._connection.on_message_complete()

    def feed_data(self, data: bytes | memoryview) -> None:
        """Parse what was read.

        Raises:
            HttpParserError: It is not HTTP, or it is CONNECT, whose bytes after the head are no request's.
        """
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as offer:
            self._read_again(memoryview(data)[offer.args[0] :])

    def _read_again(self, rest: memoryview) -> None:
        """Read the head without the offer, in a new parser, and what follows it."""
        method = self.get_method()
        if method == b"CONNECT":
            raise HttpParserError("CONNECT")
        connection = self._connection
        lines = [b"%b %b HTTP/%b" % (method, connection.url, self.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in connection.headers if header[0] != b"upgrade"]
        self._renew()
        self._parser.feed_data(b"\r\n".join((*lines, b"", b"")))
        self.feed_data(rest)

    def _renew(self) -> None:
        self._parser = HttpRequestParser(self)
        # As uvicorn does: a request that arrived before the answer to one that asks to close is answered.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.get_method = self._parser.get_method
        self.get_http_version = self._parser.get_http_version
        self.should_keep_alive = self._parser.should_keep_alive
        self.should_upgrade = self._parser.should_upgrade
