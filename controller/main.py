"""The controller: an application created from settings, and the lifespan that opens and closes its services.

`uvicorn controller.main:app` serves it with settings from the environment, but without the connection limits of
`modelyard serve`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any, TypedDict

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from app.freed_memory import reuse_memory
from app.redis.client import connect_async, ledger_errors
from app.redis.sentinel import watch
from app.server_errors import LedgerUnavailableError
from app.settings import ControllerSettings, load
from controller.admission.audit_log import audit_log, check_writable
from controller.admission.authentication import Access
from controller.batch_files import batch_routes
from controller.batch_files.batch_files import check_folder
from controller.cancelling import cancel
from controller.configured_endpoints import ConfiguredEndpoints
from controller.http import documentation, open_inference, routes
from controller.http.asgi import ERROR_HANDLERS, Controller
from controller.http.version_document import show_examples
from controller.operate import late_versions, operator_routes
from controller.page import pages
from controller.services import Services
from controller.webhooks.delivery import keys_of

logger = logging.getLogger(__name__)
KEPT_BYTES = 2**26  # of free memory: several large bodies


class State(TypedDict):
    """The state that the lifespan yields."""

    services: Services


def create_app(settings: ControllerSettings) -> Controller:
    """Create the application. Nothing connects before its lifespan begins.

    Raises:
        ConfigurationError: The API keys, the webhook secret or the pool's file have mistakes, or the audit log or the
            folder of batches cannot be written.
    """
    access, endpoints = Access(settings), ConfiguredEndpoints(settings)
    check_writable(settings.audit_log)
    check_folder(settings.batch_folder)
    keys_of(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with open_services(settings, access, endpoints) as services:
            app.services = services
            yield {"services": services}

    fastapi = FastAPIOffline(
        redoc_url=None,
        title="Modelyard",
        version=version("modelyard"),
        description=documentation.INTRODUCTION,
        openapi_tags=documentation.TAGS,
        license_info=documentation.LICENSE,
        servers=[{"url": settings.prefix or "/"}],
        redirect_slashes=False,
        lifespan=lifespan,
        exception_handlers=ERROR_HANDLERS,
    )
    fastapi.include_router(routes.router)
    fastapi.include_router(operator_routes.router)
    fastapi.include_router(batch_routes.router)
    fastapi.include_router(pages.router)
    fastapi.include_router(open_inference.router)
    app = Controller(fastapi, settings)

    def show_served(paths: dict[str, Any]) -> None:
        # The document is public. Where callers need a key, the versions are not.
        services = None if access.is_guarded else getattr(app, "services", None)
        if services:
            show_examples(paths, services.watcher.view.records, settings.prefix)

    documentation.publish_schemas(fastapi, show_served)
    return app


@asynccontextmanager
async def open_services(
    settings: ControllerSettings, access: Access, endpoints: ConfiguredEndpoints
) -> AsyncIterator[Services]:
    """Build the services, connect, and run their background tasks; close everything in reverse order.

    Redis need not be reachable: the controller answers 503 until it is.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(watch(settings.effective_redis_url))
        client = connect_async(settings)
        stack.push_async_callback(client.aclose)
        audit = stack.enter_context(audit_log(settings.audit_log))
        services = Services(settings, access, audit, client, endpoints)
        stack.callback(services.large_bodies.close)
        if services.traces:
            stack.callback(services.traces.close)
        try:
            with ledger_errors():
                await services.link.connect()
            await services.watcher.refresh()
        except LedgerUnavailableError as error:
            reason = error.detail.partition(";")[0]
            logger.warning("%s (%s); answering 503 until it does", reason, settings.shown_redis_url)
        background = [
            services.watcher.run(),
            services.link.run(),
            services.key_watch.run(),
            services.results.check_overdue(),
            services.reconciler.run(),
            services.losses.run(),
            access.watch(),
            services.feed.run(),
            services.operate.job_history.run(),
            services.operate.routing_changes.run(
                lambda: services.watcher.view.snapshot, lambda: services.reconciler.holds_lease
            ),
            services.operate.circuits.run(services.watcher.refresh_soon, services.try_example),
            late_versions.measure(services.watcher.late, services.try_example),
        ]
        if services.batch_files:
            stack.callback(services.batch_files.close)
            background.append(services.batch_files.run())
        if services.webhooks:
            background.append(services.webhooks.run())
        for coroutine in background:
            await stack.enter_async_context(_running(coroutine))
        stack.push_async_callback(services.dispatcher.close)
        # All objects created so far live as long as the process: garbage collection need not traverse them.
        gc.collect()
        gc.freeze()
        reuse_memory(KEPT_BYTES)
        logger.info(
            "the pool has %d model versions ready", len(services.watcher.view.snapshot.ready_versions)
        )
        yield services


@asynccontextmanager
async def _running(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a background task inside the context; an unexpected end of the task is logged."""
    task = asyncio.create_task(coroutine)
    task.add_done_callback(_log_death)
    try:
        yield
    finally:
        await cancel(task)


def _log_death(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception():
        logger.critical("a background task failed", exc_info=task.exception())


def __getattr__(name: str) -> Controller:
    """`controller.main:app`, created from the environment on first use."""
    if name != "app":
        raise AttributeError(name)
    made = create_app(load(ControllerSettings))
    globals()["app"] = made
    return made
