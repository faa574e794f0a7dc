"""Receives the body of a request in parts, or unpacks it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from starlette.types import Receive

from app.server_errors import InputError
from controller.input.content_coding import IDENTITY, unpack


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], check_size: Callable[[int], None], max_bytes: int
) -> list[bytes]:
    """The body of a request in parts, in order.

    Args:
        check_size: Called with the announced size, and with the received size after each part.
        max_bytes: Limit of an unpacked body.

    Raises:
        TooLargeError: It is larger than allowed.
        BodyCodingError: It does not match its content coding.
        InputError: The connection was closed before it arrived.
    """
    check_size(int(headers.get(b"content-length", b"0")))
    parts: list[bytes] = []
    size, is_whole = 0, False
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InputError("the connection was closed before the whole body arrived")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        check_size(size)
        is_whole = not message.get("more_body")
    coding = headers.get(b"content-encoding", b"")
    return (
        parts if coding in IDENTITY else [await asyncio.to_thread(unpack, coding, b"".join(parts), max_bytes)]
    )
