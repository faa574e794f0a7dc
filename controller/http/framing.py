"""Where a request begins and ends on a connection: its head, judged by its own bytes, and its body.

httptools parses each head on its own. What servers and proxies may understand differently is refused (RFC 9112,
sections 3.2 and 6.1), and chunks are written anew without extensions and trailers, so that the next parser cannot
see another end of the request than this one.
"""

from __future__ import annotations

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from app.errors import HeadTooLargeError, MalformedRequestError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_CHUNK_SIZE = re.compile(rb"0*([0-9a-fA-F]{1,12})(;[^\r\n]*)?")


class Head:
    """A parsed head.

    Args:
        data: Its bytes, the empty line included.

    Attributes:
        headers: Their names in lower case.
        body: The body that follows; None where there is none.
        path: Of its target, as it was sent.
        query: The same, empty where there is none.

    Raises:
        MalformedRequestError: It is no head that an origin server can answer.
        HeadTooLargeError: It has too many headers.
    """

    __slots__ = (
        "_data",
        "_offers_upgrade",
        "_target",
        "body",
        "headers",
        "keep_alive",
        "method",
        "path",
        "query",
        "version",
    )

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._target = b""
        self._offers_upgrade = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: SizedBody | ChunkedBody | None = None
        parser = HttpRequestParser(self)
        try:
            parser.feed_data(data)
        except HttpParserUpgrade:
            self._offers_upgrade = True
        except HttpParserError:
            raise _malformed() from None
        self.method: bytes = parser.get_method()
        self.version: str = parser.get_http_version()
        self.keep_alive = self.version != "1.0" and parser.should_keep_alive()
        self.path, self.query = self._split_target()
        self._check()

    def on_url(self, url: bytes) -> None:
        """Called by httptools for each part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools for each header."""
        self.headers.append((name.lower(), value))

    def for_uvicorn(self) -> bytes:
        """The head as uvicorn reads it correctly: unchanged, but for two headers that it would go by.

        An offer of another protocol is ignored (RFC 9110, section 7.8): httptools takes it for accepted and would
        read the body as the next request. Callers of HTTP/1.0 do not know 100 Continue (section 10.1.1).
        """
        if not self._offers_upgrade and self.version != "1.0":
            return self._data
        lines = [b"%b %b HTTP/%b" % (self.method, self._target, self.version.encode())]
        for name, value in self.headers:
            if name != b"upgrade" and (name != b"expect" or self.version != "1.0"):
                lines.append(b"%b: %b" % (name, value))
        return _LINE_END.join((*lines, b"", b""))

    def _split_target(self) -> tuple[bytes, bytes]:
        try:
            url = parse_url(self._target)
        except HttpParserError:
            raise _malformed() from None
        if url.path is None:
            raise _malformed()
        return url.path, url.query or b""

    def _check(self) -> None:
        if self.method == b"CONNECT":  # the bytes after it are no request's
            raise _malformed()
        if len(self.headers) > MAX_HEADERS:
            raise head_too_large()
        n_hosts = 0
        for name, value in self.headers:
            if name == b"host":
                n_hosts += 1
            elif name == b"content-length" and int(value):
                self.body = SizedBody(int(value))
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    raise MalformedRequestError("the only supported Transfer-Encoding is chunked")
                self.body = ChunkedBody()
        if n_hosts > 1 or (not n_hosts and self.version != "1.0"):
            raise MalformedRequestError("an HTTP/1.1 request must have exactly one Host header")


def check_beginning(data: bytes) -> None:
    """Refuse a head that is not whole and cannot become one, such as a TLS greeting.

    Raises:
        MalformedRequestError: It cannot.
    """
    try:
        HttpRequestParser(object()).feed_data(data)
    except HttpParserError:
        raise _malformed() from None


class SizedBody:
    """A body whose length its head says.

    Attributes:
        is_whole: Whether all of it was taken.
    """

    __slots__ = ("_left", "is_whole")

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes
        self.is_whole = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split what was read into this body's part and what follows it."""
        part = data[: self._left]
        self._left -= len(part)
        self.is_whole = not self._left
        return part, data[len(part) :]


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1).

    Attributes:
        is_whole: Whether all of it was taken, its trailers included.
    """

    __slots__ = ("_left", "_line_bytes", "_reads", "is_whole")

    def __init__(self) -> None:
        self._reads = "size"  # or "data", its "end", "trailers"
        self._left = 0
        self._line_bytes = 0  # of the lines since the last chunk's data
        self.is_whole = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Split what was read into this body's part, written anew, and what follows it or is not a whole line yet.

        Raises:
            MalformedRequestError: It is not in chunks.
            HeadTooLargeError: The lines around the chunks are larger than a head.
        """
        part: list[bytes] = []
        at = 0
        while not self.is_whole:
            if self._reads == "data":
                piece = data[at : at + self._left]
                if not piece:
                    break
                part += (b"%x\r\n" % len(piece), piece, _LINE_END)
                at += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._reads, self._line_bytes = "end", 0
                continue
            end = data.find(_LINE_END, at)
            self._line_bytes += (end if end >= 0 else len(data)) - at
            if self._line_bytes > MAX_HEAD_BYTES:
                raise head_too_large()
            if end < 0:
                self._line_bytes -= len(data) - at  # they are counted again when the line is whole
                break
            self._read_line(data[at:end])
            at = end + len(_LINE_END)
        if self.is_whole:
            part.append(b"0\r\n\r\n")
        return b"".join(part), data[at:]

    def _read_line(self, line: bytes) -> None:
        if self._reads == "trailers":  # which are no headers of the request (RFC 9110, section 6.5.1)
            self.is_whole = not line
        elif self._reads == "end":
            if line:
                raise _malformed()
            self._reads = "size"
        else:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise _malformed()
            self._left = int(size[1], 16)
            self._reads = "data" if self._left else "trailers"


def head_too_large() -> HeadTooLargeError:
    """A refusal of a head, or of lines between chunks."""
    return HeadTooLargeError(
        f"the request line and headers exceed {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers"
    )


def _malformed() -> MalformedRequestError:
    return MalformedRequestError("the request is not valid HTTP/1.1 for an origin server")
