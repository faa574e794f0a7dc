"""The controller application: built from settings, opened and closed by its lifespan.

`uvicorn controller.main:app` serves it with settings from the environment.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from app.celery_app import create_celery, message_template
from app.clock import PoolClock
from app.errors import LedgerUnavailableError, ModelyardError, ParameterError, UnauthenticatedError
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.quarantine import Quarantine
from app.ledger.replay import Replay
from app.redis import keys
from app.redis.client import connect_async, ledger_errors
from app.redis.link import RedisLink
from app.settings import ControllerSettings, load
from app.unreadable import Unreadable
from controller.admission.audit_log import Audit, audit_log, check_writable
from controller.admission.authentication import ANONYMOUS, DOCUMENTATION_PATHS, Access, is_open
from controller.admission.gate import Gate, listed
from controller.admission.idempotency import Idempotency
from controller.admission.rate_limit import RateLimit
from controller.admission.wait_estimate import Backlogs
from controller.dispatch import Dispatcher
from controller.http import documentation, routes
from controller.http.draining import Drain
from controller.http.fast_protocol import KnownHeads, Outbox
from controller.http.problems import PROBLEM_JSON, problem, problem_body
from controller.http.response_headers import on_answers, on_pages, on_unread_body
from controller.input.large_bodies import LargeBodies
from controller.metrics import Metrics
from controller.pool_watcher import PoolWatcher
from controller.predict import Predict, Receive, Scope, Send
from controller.recovery.data_loss import LossWatch
from controller.recovery.reconciler import Reconciler
from controller.recovery.replay_buffer import ReplayBuffer
from controller.results import Results

logger = logging.getLogger(__name__)
PREDICT = b"/predict"
CORS_HEADERS = ("authorization", "content-type", "content-encoding", "idempotency-key", "prefer")
CANCEL_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that lives as long as the application serves."""

    settings: ControllerSettings
    clock: PoolClock
    ledger: ControllerLedger
    watcher: PoolWatcher
    dispatcher: Dispatcher
    recent: ReplayBuffer
    results: Results
    metrics: Metrics
    predict: Predict
    quarantine: Quarantine
    drain: Drain
    link: RedisLink
    large_bodies: LargeBodies
    audit: Audit


class Controller:
    """The ASGI application: the hot route in front of a FastAPI application that has everything else.

    What is not open to all passes only with a valid API key, whatever route it leads to, and even if to none.
    """

    def __init__(self, fastapi: FastAPI, access: Access, settings: ControllerSettings) -> None:
        self.fastapi = fastapi
        self.known_heads = KnownHeads()
        self.outbox = Outbox()
        self.gate = Gate(settings, access)
        prefix = settings.prefix.encode()
        self.predict_paths = frozenset({PREDICT, PREDICT + b"/", prefix + PREDICT, prefix + PREDICT + b"/"})
        self._access = access
        self._prefix = settings.prefix
        origins = listed(settings.cors_origins)
        self._cross_origin: ASGIApp = (
            CORSMiddleware(
                self._guarded,
                allow_origins=origins,
                allow_methods=("GET", "HEAD", "POST", "DELETE"),
                allow_headers=CORS_HEADERS,
                allow_private_network=True,
                expose_headers=("location", "retry-after"),
            )
            if origins
            else self._guarded
        )

    @property
    def is_guarded(self) -> bool:
        """Whether callers need an API key."""
        return self._access.is_guarded

    @property
    def services(self) -> Services:
        """What the lifespan opened."""
        services: Services = self.fastapi.state.services
        return services

    def announce_stop(self) -> None:
        """Tell load balancers to go elsewhere, and serve on."""
        self.services.drain.is_announced = True

    def drain(self) -> None:
        """Take no more work; whoever still waits for an outcome in `drain_s` seconds is told where to read it."""
        services = self.services
        services.drain.is_announced = services.drain.has_begun = True
        asyncio.get_running_loop().call_later(services.settings.drain_s, services.predict.end_waits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] != "http":
            await self.fastapi(scope, receive, send)
            return
        if any(name == b"expect" for name, _ in scope["headers"]):
            receive, send = on_unread_body(receive, send)
        scope = self._as_published(scope)
        try:
            self.gate.check(scope["headers"], self._path(scope))
        except ModelyardError as error:
            await _answer(self.services, error)(scope, receive, on_answers(send))
            return
        await self._cross_origin(scope, receive, send)

    def _as_published(self, scope: Scope) -> Scope:
        """The request as FastAPI is to see it.

        Its path begins with the prefix, whether or not a proxy has stripped it, and ends without a slash: `/predict/`
        is `/predict`. HEAD is GET, whose body the server leaves out.
        """
        prefix = self._prefix or scope.get("root_path", "")
        path = scope["path"]
        path = path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
        state = {**scope.get("state", {}), "is_open": is_open(path)}  # as it is written, whatever it leads to
        path = path[:-1] if len(path) > 1 and path.endswith("/") else path
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        return {**scope, "root_path": prefix, "path": prefix + path, "method": method, "state": state}

    @staticmethod
    def _path(scope: Scope) -> str:
        path: str = scope["path"]
        return path.removeprefix(scope["root_path"])

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = self._path(scope)
        if path == "/predict" and scope["method"] == "POST":
            await self.services.predict(scope, receive, send)
            return
        send = on_pages(send) if path in DOCUMENTATION_PATHS else on_answers(send)
        try:
            caller = ANONYMOUS if scope["state"]["is_open"] else self._access.caller(_authorization(scope))
        except UnauthenticatedError as error:
            self.services.audit.refuse(
                "request", error, scope.get("client"), method=scope["method"], path=path
            )
            await _answer(self.services, error)(scope, receive, send)
            return
        scope["state"]["caller"] = caller
        await self.fastapi(scope, receive, send)


def _authorization(scope: Scope) -> bytes:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    return headers.get(b"authorization", b"")


def create_app(settings: ControllerSettings) -> Controller:
    """Make the application. Nothing connects before its lifespan begins.

    Raises:
        ConfigurationError: The API keys are malformed, or the audit log cannot be written.
    """
    access = Access(settings)
    check_writable(settings.audit_log)
    fastapi = FastAPIOffline(
        redoc_url=None,
        title="Modelyard",
        version=version("modelyard"),
        description=documentation.INTRODUCTION,
        redirect_slashes=False,
        lifespan=lambda fastapi: _lifespan(fastapi, settings, access),
    )
    fastapi.include_router(routes.router)
    documentation.publish_schemas(fastapi)
    fastapi.add_exception_handler(ModelyardError, _on_modelyard_error)
    fastapi.add_exception_handler(RequestValidationError, _on_validation_error)
    fastapi.add_exception_handler(HTTPException, _on_http_error)
    fastapi.add_exception_handler(Exception, _on_unforeseen_error)
    return Controller(fastapi, access, settings)


@asynccontextmanager
async def _lifespan(fastapi: FastAPI, settings: ControllerSettings, access: Access) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        client = connect_async(settings)
        stack.push_async_callback(client.aclose)
        controller_id = uuid4().hex
        audit = stack.enter_context(audit_log(settings.audit_log))
        services, reconciler = _build(settings, access, audit, client, controller_id)
        losses = LossWatch(
            client, settings.heartbeat_s, settings.result_retention_s, services.metrics.ledger_lost
        )
        fastapi.state.services = services
        stack.callback(services.large_bodies.close)
        try:
            with ledger_errors():
                await services.link.connect()
            await services.watcher.refresh()
        except LedgerUnavailableError as error:
            reason = error.detail.partition(";")[0]
            logger.warning("%s (%s); serving 503 until it does", reason, settings.shown_redis_url)
        background = [
            services.watcher.run(),
            services.link.run(),
            services.results.check_overdue(),
            reconciler.run(),
            losses.run(),
            access.watch(),
        ]
        for coroutine in background:
            await stack.enter_async_context(_running(coroutine))
        stack.push_async_callback(services.dispatcher.close)
        # What was made so far lives as long as the process: garbage collection need not walk it ever again.
        gc.collect()
        gc.freeze()
        logger.info("the pool has %d model versions ready", len(services.watcher.view.snapshot.candidates))
        yield


def _build(
    settings: ControllerSettings, access: Access, audit: Audit, client: Any, controller_id: str
) -> tuple[Services, Reconciler]:
    clock = PoolClock()
    ledger = ControllerLedger(client, settings.result_retention_s)
    backlogs = Backlogs(settings, lambda queue: dispatcher.open_jobs(queue))
    unreadable, drain = Unreadable(), Drain()
    recent = ReplayBuffer(Replay(client), clock, settings.result_retention_s)
    watcher = PoolWatcher(
        client, clock, backlogs, recent, settings.heartbeat_s, settings.worker_ttl_s, unreadable
    )
    metrics = Metrics(watcher, clock, unreadable)

    channels = [keys.reply_channel(controller_id), keys.POOL_CHANNEL]
    link = RedisLink(
        client, channels, lambda channel, data: results.hear(channel, data), settings.redis_timeout_s
    )
    template = message_template(create_celery(settings))
    dispatcher = Dispatcher(
        controller_id,
        link,
        template,
        clock,
        settings,
        backlogs,
        recent,
        lambda: watcher.signer,
        metrics.sent,
        metrics.settled,
    )
    results = Results(controller_id, client, ledger, dispatcher, recent, watcher, clock, unreadable, drain)
    large_bodies = LargeBodies()
    rate_limit = RateLimit(settings.rate_limit, client) if settings.rate_limit else None
    predict = Predict(
        settings,
        access,
        audit,
        rate_limit,
        watcher,
        backlogs,
        dispatcher,
        results,
        Idempotency(client, settings),
        large_bodies,
        metrics,
        clock,
        drain,
    )
    reconciler = Reconciler(
        controller_id, client, ledger, dispatcher, clock, settings.heartbeat_s, unreadable
    )
    quarantine = Quarantine(client, template, settings.result_retention_s)
    services = Services(
        settings,
        clock,
        ledger,
        watcher,
        dispatcher,
        recent,
        results,
        metrics,
        predict,
        quarantine,
        drain,
        link,
        large_bodies,
        audit,
    )
    return services, reconciler


@asynccontextmanager
async def _running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Keep a background task for the duration; one that dies by itself is logged, never silent."""
    task = asyncio.create_task(coroutine)
    task.add_done_callback(_log_death)
    try:
        yield
    finally:
        # Python 3.11's wait_for swallows a cancellation that arrives together with what it waits for.
        while not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=CANCEL_AGAIN_S)


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        logger.critical("a background task died", exc_info=task.exception())


def _on_modelyard_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ModelyardError)
    return _answer(request.app.state.services, error)


def _answer(services: Services, error: ModelyardError) -> Response:
    services.metrics.rejected(error.code)
    status, headers, body = problem(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:])
    return _on_modelyard_error(request, ParameterError(f"{name}: {first['msg']}"))


def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    detail = (
        "nothing is served at this path; the page /docs lists the API"
        if code == "not_found"
        else str(error.detail)
    )
    body = problem_body(error.status_code, code, detail)
    return Response(body, error.status_code, error.headers, media_type=PROBLEM_JSON.decode())


def _on_unforeseen_error(_: Request, error: Exception) -> Response:
    logger.error("unforeseen error", exc_info=error)
    body = problem_body(500, ModelyardError.code, "an unforeseen error; the controller's log has it")
    return Response(body, 500, media_type=PROBLEM_JSON.decode())


def __getattr__(name: str) -> Controller:
    """`controller.main:app`, made from the environment on first use."""
    if name != "app":
        raise AttributeError(name)
    made = create_app(load(ControllerSettings))
    globals()["app"] = made
    return made
