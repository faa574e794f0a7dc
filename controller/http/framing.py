"""Request framing: finds the head and the body of each request on a connection.

httptools parses each head separately. Requests that servers and proxies may interpret differently are refused (RFC
9112, sections 3.2 and 6.1). Chunks are rewritten without extensions and trailers, so that the next parser finds the
same end of the request.
"""

from __future__ import annotations

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from app.server_errors import HeadTooLargeError, MalformedRequestError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_CHUNK_SIZE = re.compile(rb"0*([0-9a-fA-F]{1,12})(;[^\r\n]*)?")


class Head:
    """A parsed head.

    Args:
        data: The bytes of the head, including the empty line.

    Attributes:
        headers: The headers, names in lower case.
        body: The body that follows, or None.
        path: Path of its target, as sent.
        query: Query string of its target, as sent; empty without one.

    Raises:
        MalformedRequestError: It is not a valid head for an origin server.
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
        try:
            url = parse_url(self._target)
        except HttpParserError:
            raise _malformed() from None
        if url.path is None:
            raise _malformed()
        self.path: bytes = url.path
        self.query: bytes = url.query or b""
        self._check()

    def on_url(self, url: bytes) -> None:
        """Append a part of the target; called by httptools."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header; called by httptools."""
        self.headers.append((name.lower(), value))

    def for_uvicorn(self) -> bytes:
        """The head for uvicorn: unchanged, except for two headers that uvicorn must not act on.

        `Upgrade` is ignored (RFC 9110, section 7.8): httptools would treat it as accepted and read the body as the next
        request. `Expect` is ignored for HTTP/1.0, whose callers do not know 100 Continue (section 10.1.1).
        """
        if not self._offers_upgrade and self.version != "1.0":
            return self._data
        lines = [b"%b %b HTTP/%b" % (self.method, self._target, self.version.encode())]
        for name, value in self.headers:
            if name != b"upgrade" and (name != b"expect" or self.version != "1.0"):
                lines.append(b"%b: %b" % (name, value))
        return _LINE_END.join((*lines, b"", b""))

    def _check(self) -> None:
        if self.method == b"CONNECT":  # the bytes after it do not belong to a request
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
    """Refuse an incomplete head that cannot become valid, such as a TLS ClientHello.

    Raises:
        MalformedRequestError: The bytes cannot begin a head.
    """
    try:
        HttpRequestParser(object()).feed_data(data)
    except HttpParserError:
        raise _malformed() from None


class SizedBody:
    """A body with a Content-Length.

    Attributes:
        is_whole: Whether the body is complete.
    """

    __slots__ = ("_left", "is_whole")

    def __init__(self, n_bytes: int) -> None:
        self._left = n_bytes
        self.is_whole = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Split the received bytes into a part of this body and the bytes after the body."""
        part = data[: self._left]
        self._left -= len(part)
        self.is_whole = not self._left
        return part, data[len(part) :]


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1).

    Attributes:
        is_whole: Whether the body is complete, including its trailers.
    """

    __slots__ = ("_left", "_line_bytes", "_reads", "is_whole")

    def __init__(self) -> None:
        self._reads = "size"  # or "data", its "end", "trailers"
        self._left = 0
        self._line_bytes = 0  # bytes of the lines since the last chunk's data
        self.is_whole = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Split the received bytes into a rewritten part of this body and the rest, which may be an incomplete line.

        Raises:
            MalformedRequestError: The body is not in chunked coding.
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
                self._line_bytes -= len(data) - at  # they are counted again when the line is complete
                break
            self._read_line(data[at:end])
            at = end + len(_LINE_END)
        if self.is_whole:
            part.append(b"0\r\n\r\n")
        return b"".join(part), data[at:]

    def _read_line(self, line: bytes) -> None:
        if self._reads == "trailers":  # trailers are not headers of the request (RFC 9110, section 6.5.1)
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
    """The error for a head, or for lines between chunks, that are too large."""
    return HeadTooLargeError(
        f"the request line and headers exceed {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers"
    )


def _malformed() -> MalformedRequestError:
    return MalformedRequestError("the request is not valid HTTP/1.1 for an origin server")
