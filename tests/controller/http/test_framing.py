"""Where a request ends: in whatever pieces it comes, it is what httptools takes for one request."""

from __future__ import annotations

from itertools import pairwise

import pytest
from httptools import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from app.server_errors import HeadTooLargeError, MalformedRequestError
from controller.http.framing import HEAD_END, MAX_HEAD_BYTES, Head, check_beginning

BODY = b'GET /smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n{"data": [1, 2]}'
FRAMED = {
    "a length": b"content-length: %d\r\n\r\n" % len(BODY) + BODY,
    "chunks": b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n",
    "chunks with more": b"transfer-encoding: Chunked\r\n\r\n5;a=b\r\n%b\r\n00%X;x\r\n%b\r\n0;c\r\nt: v\r\n\r\n"
    % (BODY[:5], len(BODY) - 5, BODY[5:]),
    "no body": b"\r\n",
}
OFFERS = [
    b"",
    b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQ\r\n",
    b"connection: keep-alive, Upgrade\r\nUPGRADE: websocket\r\nsec-websocket-version: 13\r\n",
    b"upgrade: foo/2, bar\r\nconnection: upgrade\r\nupgrade: baz\r\n",
    b"upgrade: h2c\r\n",
]


class Recorder:
    """Notes what httptools reads of what is forwarded."""

    def __init__(self) -> None:
        self.url, self.body, self.n_whole = b"", b"", 0
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.n_whole += 1


@given(
    method=st.sampled_from([b"POST", b"GET", b"DELETE", b"OPTIONS"]),
    offer=st.sampled_from(OFFERS),
    framed=st.sampled_from(sorted(FRAMED)),
    cuts=st.one_of(st.lists(st.integers(1, 400), max_size=4), st.just(list(range(500)))),
)
def test_a_request_ends_in_the_same_place_in_whatever_pieces_it_comes(
    method: bytes, offer: bytes, framed: str, cuts: list[int]
) -> None:
    data = method + b" /predict?wait=5 HTTP/1.1\r\nhost: localhost\r\n" + offer + FRAMED[framed]
    after = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    end = data.index(HEAD_END) + 4
    head = Head(data[:end])
    recorder = Recorder()
    parser = HttpRequestParser(recorder)
    parser.feed_data(head.for_uvicorn())
    sent, body, held = data[end:] + after, head.body, b""
    bounds = [0, *sorted({min(cut, len(sent)) for cut in cuts}), len(sent)]
    for begin, stop in pairwise(bounds):
        held += sent[begin:stop]
        if body is not None and not body.is_whole:
            part, held = body.feed(held)
            parser.feed_data(part)
    assert (body is None or body.is_whole, recorder.n_whole) == (True, 1)
    assert held == after
    assert recorder.body == (b"" if framed == "no body" else BODY)
    assert (recorder.url, (b"host", b"localhost") in recorder.headers) == (b"/predict?wait=5", True)
    assert b"t" not in dict(recorder.headers)


@pytest.mark.parametrize(
    "body",
    [
        b"5 \r\nhello\r\n",
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"5;a\nb\r\n",
        b"f" * 17 + b"\r\n",
    ],
)
def test_what_is_no_chunk_is_refused(body: bytes) -> None:
    chunks = Head(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").body
    assert chunks is not None
    with pytest.raises(MalformedRequestError):
        chunks.feed(body)


@pytest.mark.parametrize("begun", [b"5;", b"0\r\na: ", b"0\r\n" + b"a: b\r\n" * 20_000])
def test_lines_around_chunks_are_no_larger_than_a_head(begun: bytes) -> None:
    chunks = Head(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").body
    assert chunks is not None
    with pytest.raises(HeadTooLargeError):
        chunks.feed(begun + b"a" * (MAX_HEAD_BYTES + 1))


@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT x:443 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://host HTTP/1.1\r\nhost: host\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: host\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: a\nx: b\r\n\r\n",
    ],
)
def test_a_head_that_no_origin_server_answers_is_refused(head: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        Head(head)


@pytest.mark.parametrize("begun", [b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\nhost: a\n", b"NONSENSE "])
def test_what_cannot_become_a_head_is_refused_before_its_end(begun: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        check_beginning(begun)
    check_beginning(b"GET /healthz HTTP/1.1\r\nhost: loc")
