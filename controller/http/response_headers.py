"""Security headers of every answer. Those of the API are constant; those of a documentation page allow its scripts."""

from __future__ import annotations

import base64
import re
from hashlib import sha256

from starlette.types import Message, Receive, Send

from controller.http.draining import Drain

Headers = list[tuple[bytes, bytes]]

_ALL: Headers = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
# Answers are data, some of it private: they must not be executed, framed or cached.
API: Headers = [
    *_ALL,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
CLOSE = (b"connection", b"close")
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def on_answers(send: Send, drain: Drain) -> Send:
    """A `send` that adds the API's headers, and marks an answer that is the last one on its connection."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            last = [CLOSE] if drain.is_announced else []
            message["headers"] = [*message.get("headers", []), *API, *last]
        await send(message)

    return send_with_headers


def on_unread_body(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """A `receive` and a `send` for a request that expects 100-continue.

    If it is answered before its body was requested, the caller may continue with the body or with the next request (RFC
    9110, section 10.1.1). These cannot be distinguished, so such an answer is the last one on its connection.
    """
    is_asked_for = False

    async def receive_and_note() -> Message:
        nonlocal is_asked_for
        is_asked_for = True
        return await receive()

    async def send_and_close(message: Message) -> None:
        if message["type"] == "http.response.start" and not is_asked_for:
            message["headers"] = [*message.get("headers", []), CLOSE]
        await send(message)

    return receive_and_note, send_and_close


def on_pages(send: Send, drain: Drain) -> Send:
    """A `send` that adds the headers of a documentation page, which is sent in one part."""
    start: Message = {}

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)  # delayed: its headers depend on the page
            return
        if start:
            own = of_page(message.get("body", b"")) + ([CLOSE] if drain.is_announced else [])
            await send({**start, "headers": [*start.get("headers", []), *own]})
            start.clear()
        await send(message)

    return send_with_headers


def of_page(body: bytes) -> Headers:
    """Headers of a documentation page: they allow only its own scripts and styles, and requests to this API."""
    hashes = [base64.b64encode(sha256(script).digest()) for script in _INLINE_SCRIPT.findall(body)]
    scripts = b"".join(b" 'sha256-" + each + b"'" for each in hashes)
    policy = (
        b"default-src 'none'; script-src 'self'" + scripts + b"; style-src 'self' 'unsafe-inline'; "
        b"img-src 'self' data:; connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
    )
    return [*_ALL, (b"cache-control", b"no-cache"), (b"content-security-policy", policy)]
