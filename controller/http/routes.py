"""The HTTP surface: every endpoint, its parameters and its documentation."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import msgspec
import orjson
from fastapi import APIRouter, Query, Request, Response

from controller.admission.authentication import Caller, require
from controller.http import documentation as docs
from controller.http import readiness
from controller.http.caller_presence import while_present
from controller.http.job_events import event_stream
from controller.http.job_json import job_json, result_url, view_json
from controller.http.many_jobs import job_ids_of, jobs_json
from controller.http.pool_document import pool_document
from controller.http.prediction_request import in_range, parse_query, version_of
from controller.http.responses import JSON, json_response, only_documented
from controller.http.version_document import record_of, version_document
from controller.routing import routes
from controller.services import Services
from modelyard.schemas import (
    Health,
    Quarantine,
    Readiness,
    RoutePlan,
)

router = APIRouter()


@router.post("/predict", dependencies=[require("predict")], **docs.PREDICT)
async def predict() -> Response:
    """Predict with the best model version, or with the version that the query selects."""
    return only_documented()


@router.post("/models/{name}/predict", dependencies=[require("predict")], **docs.MODEL_PREDICT)
async def predict_with_model(name: str) -> Response:
    """Predict with the best version of a model; `NAME@ALIAS` selects the version of an alias."""
    return only_documented()


@router.post(
    "/models/{name}/versions/{version}/predict", dependencies=[require("predict")], **docs.VERSION_PREDICT
)
async def predict_with_version(name: str, version: str) -> Response:
    """Predict with one version, given as a number or an alias."""
    return only_documented()


@router.post("/invocations", dependencies=[require("predict")], **docs.INVOCATIONS)
async def invocations() -> Response:
    """Predict as MLflow's scoring server does; the version is routed, or the one that the query names."""
    return only_documented()


@router.post("/endpoints/{name}/invocations", dependencies=[require("predict")], **docs.INVOCATIONS)
async def endpoint_invocations(name: str) -> Response:
    """The same, for the versions of an endpoint, as MLflow's deployment clients call it."""
    return only_documented()


@router.post("/models/{name}/invocations", dependencies=[require("predict")], **docs.INVOCATIONS)
async def model_invocations(name: str) -> Response:
    """The same, for the versions of a model."""
    return only_documented()


@router.post(
    "/models/{name}/versions/{version}/invocations", dependencies=[require("predict")], **docs.INVOCATIONS
)
async def version_invocations(name: str, version: str) -> Response:
    """The same, for one version."""
    return only_documented()


@router.get("/ping", **docs.PING)
@router.get("/health", **docs.PING)
async def ping(request: Request) -> Response:
    """Whether a prediction would be accepted now."""
    services: Services = request.state.services
    reasons = [*readiness.against_serving(services), *readiness.against_accepting(services)]
    return Response(b"\n", 503 if reasons else 200, media_type=JSON)


@router.get("/version", **docs.VERSION)
async def server_version() -> Response:
    """The release of this server."""
    return Response(metadata.version("modelyard"), media_type=JSON)


@router.get("/results", dependencies=[require("predict")], **docs.RESULTS)
async def results(
    request: Request,
    ids: Annotated[str, Query(description="job ids, separated by commas; 1 to 1,000")],
    wait: Annotated[float, Query(description="seconds to wait for the last outcome, 0 to 60")] = 0.0,
) -> Response:
    """Read many jobs in one round trip; a job that cannot be read has its problem in its place."""
    services: Services = request.state.services
    wait_s = in_range("wait", wait, 0, services.settings.max_wait_s)
    reading = services.results.jobs(job_ids_of(ids), request.state.caller, wait_s)
    found = await (while_present(request, reading) if wait_s else reading)
    return Response(await jobs_json(found, services.settings.prefix), media_type=JSON)


@router.get("/results/events", dependencies=[require("predict")], **docs.RESULTS_EVENTS)
async def results_events(
    request: Request,
    ids: Annotated[str, Query(description="job ids, separated by commas; 1 to 1,000")],
) -> Response:
    """Follow many jobs as server-sent events; ends with the last outcome."""
    return await _event_stream(request, job_ids_of(ids))


@router.post("/endpoints/{name}/predict", dependencies=[require("predict")], **docs.ENDPOINT_PREDICT)
async def predict_with_endpoint(name: str) -> Response:
    """Predict with the best version of an endpoint."""
    return only_documented()


@router.get("/results/{job_id}", dependencies=[require("predict")], **docs.RESULT)
async def result(
    request: Request,
    job_id: str,
    wait: Annotated[float, Query(description="seconds to wait for the outcome, 0 to 60")] = 0.0,
    explain: Annotated[bool, Query(description="add `route`: why the job went to its version")] = False,
) -> Response:
    """Read a job, and its outcome if it has one."""
    services: Services = request.state.services
    wait_s = in_range("wait", wait, 0, services.settings.max_wait_s)
    found = services.results.job(job_id, request.state.caller, wait_s)
    view = await (while_present(request, found) if wait_s else found)
    body = view_json(view, services.settings.prefix)
    if explain:
        route = msgspec.json.encode(await services.results.explain(view))
        body = b'%b,"route":%b}' % (body[:-1], route)
    return Response(body, media_type=JSON)


@router.get("/route", dependencies=[require("predict")], **docs.ROUTE)
async def route(request: Request) -> Response:
    """Say where a prediction with the same query parameters would go now, and why. Nothing is sent."""
    services: Services = request.state.services
    query = parse_query(request.scope["query_string"])
    own, selector = services.endpoints, query.selector
    deadline_s = own.deadline_s(selector) if query.deadline_s is None else query.deadline_s
    in_range("deadline", deadline_s, 0.001, services.settings.max_deadline_s)
    snapshot = services.watcher.view.snapshot
    possible = tuple(map(snapshot.explain, routes(snapshot, selector, deadline_s)))
    wait_s = own.wait_s(selector) if query.wait_s is None else query.wait_s
    return json_response(RoutePlan(possible, deadline_s, wait_s))


@router.get("/results/{job_id}/events", dependencies=[require("predict")], **docs.RESULT_EVENTS)
async def result_events(request: Request, job_id: str) -> Response:
    """Follow a job as server-sent events: its state, each change, and its outcome."""
    return await _event_stream(request, [job_id])


@router.delete("/results/{job_id}", dependencies=[require("predict")], **docs.CANCEL)
async def cancel(request: Request, job_id: str) -> Response:
    """Cancel a job that no worker has claimed yet."""
    services: Services = request.state.services
    caller: Caller = request.state.caller
    with services.audit.act("cancel", "cancelled", caller.name, request.client, job_id):
        view = await services.results.job(job_id, caller)
        if view.status != "cancelled":
            await services.ledger.cancel(view.ref, view.head)
            services.replay_buffer.cancelled(view.ref, view.head)
            services.operate.job_history.cancelled(view.ref, view.head)
            if services.webhooks and view.ref.index in view.head.callbacks:
                services.webhooks.ended([job_id])
    prefix = services.settings.prefix
    return Response(job_json(view.ref, view.head, "cancelled", view.outcome, prefix), media_type=JSON)


@router.get("/workers", dependencies=[require("operate")], **docs.WORKERS)
async def workers(request: Request) -> Response:
    """The pool: every worker number with its model version, its workers and its backlog."""
    services: Services = request.state.services
    await services.watcher.refresh()
    return json_response(pool_document(services.watcher.view, services.clock.now_ms()))


@router.get(
    "/models/{name}/versions/{version}/openapi.json",
    dependencies=[require("predict")],
    **docs.VERSION_OPENAPI,
)
async def version_openapi(request: Request, name: str, version: str) -> Response:
    """The OpenAPI document of one version: its input as a JSON Schema, its example, and its outputs."""
    services: Services = request.state.services
    record = record_of(services.watcher.view, name, version_of(version))
    document = version_document(request.app.openapi(), record, services.settings.prefix)
    return Response(orjson.dumps(document), media_type=JSON)


@router.get("/quarantine", dependencies=[require("operate")], **docs.QUARANTINE)
async def quarantine(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000, description="number of jobs, newest first")] = 100,
) -> Response:
    """Jobs quarantined after crashing their worker, newest first."""
    services: Services = request.state.services
    return json_response(Quarantine(tuple(await services.quarantine.jobs(limit))))


@router.post("/quarantine/{job_id}/resend", dependencies=[require("operate")], **docs.RESEND)
async def resend(
    request: Request,
    job_id: str,
    deadline: Annotated[float | None, Query(description="seconds until the new job expires")] = None,
    again: Annotated[bool, Query(description="resend a job even if it was resent before")] = False,
) -> Response:
    """Send a quarantined job again, as a new job. A repeated request has no further effect."""
    services: Services = request.state.services
    caller: Caller = request.state.caller
    settings = services.settings
    deadline_s = settings.default_deadline_s if deadline is None else deadline
    in_range("deadline", deadline_s, 0.001, settings.max_deadline_s)
    with services.audit.act("resend", "resent", caller.name, request.client, job_id) as entry:
        sent = await services.quarantine.resend(job_id, services.watcher.signer, deadline_s, again=again)
        entry |= {"resent_as": sent.job_id}
    view = await services.results.job(sent.job_id, caller)
    body = view_json(view, settings.prefix)
    location = result_url(sent.job_id, settings.prefix)
    return Response(body, 202, {"location": location}, media_type=JSON)


@router.get("/metrics", dependencies=[require("operate")], **docs.METRICS)
async def metrics(request: Request) -> Response:
    """All series in Prometheus's text format."""
    services: Services = request.state.services
    return Response(services.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/healthz", **docs.HEALTH)
async def healthz() -> Response:
    """Whether the process is alive."""
    return json_response(Health("alive"))


@router.get("/readyz", **docs.READY)
async def readyz(request: Request) -> Response:
    """Whether a prediction would be accepted now, and if not, why. An empty pool makes every controller not ready."""
    services: Services = request.state.services
    return _readiness([*readiness.against_serving(services), *readiness.against_accepting(services)])


@router.get("/readyz/read", **docs.READY_TO_READ)
async def readyz_read(request: Request) -> Response:
    """Whether this controller can serve reads: it is not stopping, and Redis answers, with or without workers.

    The probe for load balancers: missing workers affect all controllers equally, and outcomes can still be read.
    """
    return _readiness(readiness.against_serving(request.state.services))


async def _event_stream(request: Request, job_ids: list[str]) -> Response:
    services: Services = request.state.services
    last = request.headers.get("last-event-id")
    return await event_stream(services.results, job_ids, request.state.caller, services.settings.prefix, last)


def _readiness(reasons: list[str]) -> Response:
    headers = {"retry-after": "1"} if reasons else None
    return json_response(Readiness(not reasons, tuple(reasons)), 503 if reasons else 200, headers)
