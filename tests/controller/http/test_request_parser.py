"""What is read off a connection, in whatever pieces: an offer to upgrade changes nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from httptools import HttpParserError
from hypothesis import given
from hypothesis import strategies as st

from controller.http.request_parser import RequestParser

BODY = b'GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n{"data": [1, 2]}'
FRAMED = {
    "a length": b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunks": b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    "no body": b"\r\n",
}
OFFERS = [
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQ\r\n",
    b"connection: keep-alive, Upgrade\r\nUPGRADE: websocket\r\nsec-websocket-version: 13\r\n",
    b"upgrade: foo/2, bar\r\nconnection: upgrade\r\nupgrade: baz\r\n",
    b"upgrade: h2c\r\n",
]


class Recorder:
    """Notes what was read."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, list[tuple[bytes, bytes]], bytes]] = []
        self.url, self.headers, self.body = b"", [(b"", b"")], b""

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        pass

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        headers = [each for each in self.headers if each[0] != b"upgrade"]
        self.requests.append((self.url, headers, self.body))


@given(
    method=st.sampled_from([b"POST", b"GET", b"DELETE", b"OPTIONS"]),
    offer=st.sampled_from(OFFERS),
    framed=st.sampled_from(sorted(FRAMED)),
    cuts=st.one_of(st.lists(st.integers(1, 400), max_size=4), st.just(list(range(500)))),
)
def test_a_request_that_offers_to_upgrade_is_read_like_any_other_in_whatever_pieces(
    method: bytes, offer: bytes, framed: str, cuts: list[int]
) -> None:
    request = method + b" /predict?wait=5 HTTP/1.1\r\nhost: localhost\r\n" + offer + FRAMED[framed]
    sent = request + request + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    recorder = Recorder()
    parser = RequestParser(recorder)
    bounds = [0, *sorted({min(cut, len(sent)) for cut in cuts}), len(sent)]
    for begin, end in pairwise(bounds):
        parser.feed_data(sent[begin:end])
    assert [url for url, _, _ in recorder.requests] == [b"/predict?wait=5"] * 2 + [b"/healthz"]
    body = b"" if framed == "no body" else BODY
    assert [body for _, _, body in recorder.requests] == [body, body, b""]
    assert (b"host", b"localhost") in recorder.requests[0][1]


def test_bytes_behind_connect_are_never_read_as_a_request() -> None:
    recorder = Recorder()
    parser = RequestParser(recorder)
    with pytest.raises(HttpParserError):
        parser.feed_data(b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
    assert not recorder.requests
