"""The HTTP surface: every endpoint, its parameters and its documentation."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.contract import TensorContract
from app.worker_record import WorkerRecord
from controller.admission.authentication import caller_of, require
from controller.http import documentation as docs
from controller.http import readiness
from controller.http.job_json import job_json, result_url
from controller.http.prediction_request import in_range
from controller.pool_watcher import PoolView
from controller.services import Services
from modelyard.schemas import (
    Health,
    InputShape,
    Latency,
    Pool,
    Quarantine,
    Readiness,
    Replica,
    WorkerInfo,
)

router = APIRouter()
JSON = "application/json"


def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


@router.post("/predict", dependencies=[require("predict")], **docs.PREDICT)
async def predict() -> Response:
    """Send one or several samples to the best model version, or to the one that you name."""
    raise AssertionError("the ASGI application serves this in front of FastAPI, which documents it")


@router.get("/results/{job_id}", dependencies=[require("predict")], **docs.RESULT)
async def result(
    request: Request,
    job_id: str,
    wait: Annotated[float, Query(description="seconds to wait for the outcome, 0 to 60")] = 0.0,
) -> Response:
    """Read a job, and its outcome where it has one."""
    services = _services(request)
    wait_s = in_range("wait", wait, 0, services.settings.max_wait_s)
    view = await services.results.job(job_id, caller_of(request), wait_s)
    prefix = services.settings.prefix
    return Response(job_json(view.ref, view.head, view.status, view.outcome, prefix), media_type=JSON)


@router.delete("/results/{job_id}", dependencies=[require("predict")], **docs.CANCEL)
async def cancel(request: Request, job_id: str) -> Response:
    """Cancel a job that no worker has taken yet."""
    services, caller = _services(request), caller_of(request)
    with services.audit.act("cancel", "cancelled", caller.name, request.client, job_id):
        view = await services.results.job(job_id, caller)
        if view.status != "cancelled":
            await services.ledger.cancel(view.ref, view.head)
            services.replay_buffer.cancelled(view.ref, view.head)
    prefix = services.settings.prefix
    return Response(job_json(view.ref, view.head, "cancelled", view.outcome, prefix), media_type=JSON)


@router.get("/workers", dependencies=[require("operate")], **docs.WORKERS)
async def workers(request: Request) -> Response:
    """The pool: every worker number with its model version, its workers and its backlog."""
    services = _services(request)
    await services.watcher.refresh()
    view, now_ms = services.watcher.view, services.clock.now_ms()
    rows = tuple(_worker(view, queue, number, now_ms) for queue, number in _present(view))
    return _document(Pool(rows))


@router.get("/quarantine", dependencies=[require("operate")], **docs.QUARANTINE)
async def quarantine(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000, description="number of jobs, newest first")] = 100,
) -> Response:
    """Jobs that cost their workers their lives, newest first."""
    jobs = await _services(request).quarantine.jobs(limit)
    return _document(Quarantine(tuple(jobs)))


@router.post("/quarantine/{job_id}/resend", dependencies=[require("operate")], **docs.RESEND)
async def resend(
    request: Request,
    job_id: str,
    deadline: Annotated[float | None, Query(description="seconds until the new job expires")] = None,
    again: Annotated[bool, Query(description="resend a job even if it was resent before")] = False,
) -> Response:
    """Send a quarantined job again, as a new job; said twice, it is done once."""
    services, caller = _services(request), caller_of(request)
    settings = services.settings
    deadline_s = settings.default_deadline_s if deadline is None else deadline
    in_range("deadline", deadline_s, 0.001, settings.max_deadline_s)
    with services.audit.act("resend", "resent", caller.name, request.client, job_id) as entry:
        sent = await services.quarantine.resend(job_id, services.watcher.signer, deadline_s, again=again)
        entry |= {"resent_as": sent.job_id}
    view = await services.results.job(sent.job_id, caller)
    body = job_json(view.ref, view.head, view.status, view.outcome, settings.prefix)
    location = result_url(sent.job_id, settings.prefix)
    return Response(body, 202, {"location": location}, media_type=JSON)


@router.get("/metrics", dependencies=[require("operate")], **docs.METRICS)
async def metrics(request: Request) -> Response:
    """All series in Prometheus's text format."""
    return Response(
        _services(request).metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


@router.get("/healthz", **docs.HEALTH)
async def healthz() -> Response:
    """Whether the process is alive."""
    return _document(Health("alive"))


@router.get("/readyz", **docs.READY)
async def readyz(request: Request) -> Response:
    """Whether a prediction would be accepted now, and if not, why. An empty pool makes every controller not ready."""
    services = _services(request)
    return _readiness([*readiness.against_serving(services), *readiness.against_accepting(services)])


@router.get("/readyz/read", **docs.READY_TO_READ)
async def readyz_read(request: Request) -> Response:
    """Whether this controller can serve: it is not stopping and Redis answers, whatever the workers do.

    Load balancers should ask this one: what the pool lacks, every controller lacks, and outcomes can be read.
    """
    return _readiness(readiness.against_serving(_services(request)))


def _readiness(reasons: list[str]) -> Response:
    headers = {"retry-after": "1"} if reasons else None
    return _document(Readiness(not reasons, tuple(reasons)), 503 if reasons else 200, headers)


def _document(document: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, headers, media_type=JSON)


def _present(view: PoolView) -> list[tuple[str, int]]:
    """Queues that have a live worker or a backlog, by worker number."""
    queues = {record.queue for record in view.records} | set(view.backlog_jobs)
    return sorted(((q, view.numbers[q]) for q in queues if q in view.numbers), key=lambda row: row[1])


def _worker(view: PoolView, queue: str, number: int, now_ms: float) -> WorkerInfo:
    records = sorted(
        (record for record in view.records if record.queue == queue), key=lambda record: record.worker_id
    )
    name, version = view.snapshot.known[number]
    newest = max(records, key=lambda record: record.heartbeat_at_ms, default=None)
    oldest_at_ms = view.oldest_at_ms.get(queue)
    chosen = view.snapshot.by_number.get(number)
    return WorkerInfo(
        worker=number,
        model_name=name,
        model_version=version,
        queue=queue,
        val_accuracy=newest.val_accuracy if newest else None,
        input=_input(newest) if newest else None,
        live_workers=sum(record.state == "ready" for record in records),
        backlog_jobs=view.backlog_jobs.get(queue, 0),
        oldest_job_age_s=0.0 if oldest_at_ms is None else round(max(0.0, now_ms - oldest_at_ms) / 1000, 3),
        expected_wait_s=round(chosen.expected_wait_ms / 1000, 3) if chosen else None,
        inference_ms=newest.inference_ms if newest else Latency(),
        jobs_done=sum(record.jobs_done for record in records),
        jobs_failed=sum(record.jobs_failed for record in records),
        replicas=tuple(msgspec.convert(record, Replica, from_attributes=True) for record in records),
        example=msgspec.Raw(newest.example.encode()) if newest and newest.example else None,
    )


def _input(record: WorkerRecord) -> InputShape:
    contract = record.input
    if isinstance(contract, TensorContract):
        return InputShape(contract.dtype, (-1, *contract.sample_shape))
    return msgspec.convert(msgspec.to_builtins(contract), InputShape)
