"""The answers of FastAPI's routes: a JSON document, and a stream of server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, NoReturn

import msgspec
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from controller.http.replies import Reply

JSON = "application/json"


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A document of the HTTP API."""
    return Response(msgspec.json.encode(document), status, headers, media_type=JSON)


class EventResponse(StreamingResponse):
    """A stream of encoded events, which ends its source when the caller leaves.

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


def response_of(reply: Reply) -> Response:
    """A reply as FastAPI sends it."""
    headers = {name.decode(): value.decode() for name, value in reply.headers}
    return Response(reply.body, reply.status, headers)


def only_documented() -> NoReturn:
    """The body of a route that never receives a request."""
    raise AssertionError("the ASGI application serves this in front of FastAPI, which documents it")
