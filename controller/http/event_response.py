"""An answer of server-sent events that ends its source when the caller leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class EventResponse(StreamingResponse):
    """A stream of encoded events.

    Starlette stops reading a source whose caller has left, but leaves it open until the garbage collector finds it.
    """

    def __init__(self, source: AsyncGenerator[bytes, None]) -> None:
        # Proxies otherwise hold events back.
        super().__init__(source, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, then close their source."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()
