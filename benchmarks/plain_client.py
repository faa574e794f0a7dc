"""An HTTP client for load on a machine that runs the measured processes too: a tenth of httpx's processor time."""

from __future__ import annotations

import asyncio
import json as json_format
import re
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class PlainAnswer:
    """A status and a body, with the names of httpx."""

    status_code: int
    content: bytes

    def json(self) -> Any:
        """The decoded body."""
        return json_format.loads(self.content)


class PlainClient:
    """Posts JSON over one connection, which is opened again after an error.

    It reads answers with a content length only, as a controller gives them.

    Args:
        timeout_s: Time limit of a request.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> PlainClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    async def post(self, url: str, *, json: Any) -> PlainAnswer:
        """Post a document.

        Raises:
            httpx.TransportError: The connection failed, or the answer took too long.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchange(url, json_format.dumps(json).encode())
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self._close()
            raise httpx.TransportError(repr(error)) from error

    async def _exchange(self, url: str, body: bytes) -> PlainAnswer:
        parts = urlsplit(url)
        if self._streams is None:
            self._streams = await asyncio.open_connection(parts.hostname, parts.port)
        reader, writer = self._streams
        head = f"POST {parts.path}?{parts.query} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        writer.write(b"%bcontent-length: %d\r\n\r\n%b" % (head.encode(), len(body), body))
        answer = await reader.readuntil(b"\r\n\r\n")
        length = LENGTH.search(answer)
        content = await reader.readexactly(int(length[1]) if length else 0)
        if b"\r\nconnection: close" in answer.lower():
            self._close()
        return PlainAnswer(int(answer[9:12]), content)

    def _close(self) -> None:
        if self._streams:
            self._streams[1].close()
            self._streams = None
