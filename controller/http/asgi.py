"""The ASGI application: admits requests, passes predictions to their handler and all other requests to FastAPI.

FastAPI documents predictions as well, but never receives one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import logs
from app.server_errors import ModelyardError, ParameterError
from app.settings import ControllerSettings
from controller.admission.authentication import PAGE_FILES, PAGES
from controller.admission.gate import listed
from controller.http import invocations, open_inference
from controller.http.draining import Drain
from controller.http.prediction_request import ENDS, Address, address_of
from controller.http.problems import PROBLEM_JSON, problem_body
from controller.http.replies import Reply
from controller.http.request_body import read_body
from controller.http.response_headers import API, CLOSE, of_page
from controller.http.responses import response_of
from controller.services import Services

LEFT = 499  # nobody receives it; proxies log this status for callers who have left
REQUEST_ID_LENGTH = 128  # of a caller's text that is logged
V2 = open_inference.router.prefix
# pydantic's words -> those of this API
WORDS = {
    "Input should be ": "",
    "less than or equal to": "at most",
    "greater than or equal to": "at least",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
    ", unable to interpret input": "",
}
EXPECTED = re.compile("|".join(map(re.escape, WORDS)))
CORS_HEADERS = ("authorization", "content-type", "content-encoding", "idempotency-key", "prefer")


class Controller:
    """The application.

    Args:
        fastapi: All routes.

    Attributes:
        services: The controller's services, opened by the lifespan.
    """

    services: Services

    def __init__(self, fastapi: FastAPI, settings: ControllerSettings) -> None:
        self.fastapi = fastapi
        self._settings = settings
        self._names_requests = logs.is_json()
        origins = listed(settings.cors_origins)
        self._cross_origin: ASGIApp = (
            CORSMiddleware(
                self._serve,
                allow_origins=origins,
                allow_methods=("GET", "HEAD", "POST", "DELETE"),
                allow_headers=CORS_HEADERS,
                allow_private_network=True,
                expose_headers=("location", "retry-after"),
            )
            if origins
            else self._serve
        )

    def drain(self) -> None:
        """Refuse new predictions; callers that still wait after `drain_s` seconds get the URL of their job."""
        drain = self.services.drain
        drain.is_announced = drain.has_begun = True
        self.services.feed.close()
        if self.services.batch_files:
            self.services.batch_files.close()  # its processes wait for outcomes
        asyncio.get_running_loop().call_later(self._settings.drain_s, self.services.predict.end_waits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self.fastapi(scope, receive, send)
            return
        if b"expect" in dict(scope["headers"]):
            receive, send = _on_unread_body(receive, send)
        connection = scope.get("state", {}).get("connection")
        traces = self.services.traces if scope["method"] == "POST" else None
        try:
            if traces is None:
                await self._cross_origin(scope, receive, send)
            else:
                await traces.serve(self._cross_origin, scope, receive, send)
        finally:
            if connection is not None:
                connection.application_is_done()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Normalise a request for FastAPI and serve it.

        Its path begins with the prefix, even if a proxy has stripped it, and ends without a slash: `/predict/` becomes
        `/predict`. HEAD becomes GET, and the server omits the body.
        """
        if self._names_requests:
            name: bytes = dict(scope["headers"]).get(b"x-request-id", b"")
            logs.request_id.set(name[:REQUEST_ID_LENGTH].decode("latin-1"))
        services = self.services
        prefix = self._settings.prefix or scope.get("root_path", "")
        written: str = scope["path"]
        if written.startswith(f"{prefix}/"):
            written = written.removeprefix(prefix)
        path = written[:-1] if len(written) > 1 and written.endswith("/") else written
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if path == V2 or path.startswith(f"{V2}/"):
            send = open_inference.on_errors(send)
        try:
            address = address_of(path) if method == "POST" and path.endswith(ENDS) else None
            if address is not None and address.reading == "open_inference":
                answer = await open_inference.infer(services, scope, receive, address)
                await answer(scope, receive, _on_answers(send, services.drain))
                return
            if address is not None:
                await self._send(await self._predict(scope, receive, address), send)
                return
            caller = services.gate.enter(written, scope["headers"])
        except Exception as error:
            reply = services.refusals.reply_to(error, scope.get("client"), method, path)
            await self._send(invocations.refusal(error) if path.endswith(invocations.PATH) else reply, send)
            return
        state = {**scope.get("state", {}), "services": services, "caller": caller}
        scope = {**scope, "root_path": prefix, "path": prefix + path, "method": method, "state": state}
        wrap = _on_pages if path in PAGES or path.startswith(PAGE_FILES) else _on_answers
        send = wrap(send, services.drain)
        await self.fastapi(scope, receive, send)

    async def _predict(self, scope: Scope, receive: Receive, address: Address) -> Reply:
        """Call the prediction handler; the body is received in parts."""
        predict = self.services.predict
        request = predict.enter(scope["headers"], scope["query_string"], scope.get("client"), address)
        headers: dict[bytes, bytes] = dict(scope["headers"])
        parts = await read_body(receive, headers, predict.check_size, self._settings.max_body_bytes)
        key = headers.get(b"idempotency-key") if address.reading == "strict" else None
        return await predict.respond(request, parts, key)

    async def _send(self, reply: Reply, send: Send) -> None:
        headers = [*reply.headers, *API, (b"content-length", b"%d" % len(reply.body))]
        if self.services.drain.is_announced and CLOSE not in headers:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})


def _on_answers(send: Send, drain: Drain) -> Send:
    """A `send` that adds the API's headers, and marks an answer that is the last one on its connection."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            last = [CLOSE] if drain.is_announced else []
            message["headers"] = [*message.get("headers", []), *API, *last]
        await send(message)

    return send_with_headers


def _on_unread_body(receive: Receive, send: Send) -> tuple[Receive, Send]:
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


def _on_pages(send: Send, drain: Drain) -> Send:
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


async def _on_modelyard_error(request: Request, error: Exception) -> Response:
    services: Services = request.state.services
    key, path = request.state.caller.name, request.url.path.removeprefix(services.settings.prefix)
    return response_of(services.refusals.reply_to(error, request.client, request.method, path, key))


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    name = found[0]["loc"][1]
    own = [each for each in found if each["loc"][1] == name]  # of a union, one for each of its types
    if own[0]["type"] == "missing":
        return await _on_modelyard_error(request, ParameterError(f"the parameter {name} is missing"))
    expected = " or ".join(EXPECTED.sub(lambda match: WORDS[match[0]], each["msg"]) for each in own)
    # The value is not repeated: a page could show it.
    return await _on_modelyard_error(request, ParameterError(f"wrong value of {name}; expected {expected}"))


async def _on_leaving(_: Request, __: Exception) -> Response:
    return Response(status_code=LEFT)


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = (
        "there is no resource at this path; /docs lists the API" if code == "not_found" else str(error.detail)
    )
    body = problem_body(error.status_code, code, detail)
    return Response(body, error.status_code, error.headers, media_type=PROBLEM_JSON.decode())


ERROR_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    ModelyardError: _on_modelyard_error,
    RequestValidationError: _on_validation_error,
    HTTPException: _on_http_error,
    ClientDisconnect: _on_leaving,
    Exception: _on_modelyard_error,
}
