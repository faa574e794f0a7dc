"""The routes for operators, and for MLflow's webhook: versions out of service, jobs, decisions, scale, the registry."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from app.fsck.examination import Examiner
from app.pool_file import MOST_REPLICAS, NamedVersion
from app.redis import keys
from app.redis.client import ledger_errors
from app.server_errors import NotScalableError, TooLargeError, UnknownModelError
from app.worker_record import UP
from controller.admission.authentication import REGISTRY_WEBHOOK, Caller, require
from controller.http import documentation as docs
from controller.http.responses import json_response
from controller.operate.controls import DONE, Action
from controller.operate.job_history import JobFilter
from controller.operate.reroute import rivals_of
from controller.operate.wanted_replicas import expected_wait_s, live_replicas, wanted_replicas
from controller.services import Services
from modelyard.schemas import DecisionList, Findings, PoolFinding, Scale

router = APIRouter()
Reason = Annotated[str, Query(max_length=500, description="why, for the log of decisions")]
Replicas = Annotated[
    Annotated[int, Query(ge=1, le=MOST_REPLICAS)] | Literal["auto"],
    Query(description="number of workers; `auto`: as modelyard.toml says"),
]
DryRun = Annotated[bool, Query(description="whether to check it only: the answer says what would be done")]
MAX_EVENT_BYTES = 2**20


async def _apply(
    request: Request,
    action: Action,
    name: str,
    version: int | None,
    reason: str,
    *,
    reroute: bool = False,
    replicas: int | None = None,
    dry_run: bool,
) -> Response:
    services: Services = request.state.services
    caller: Caller = request.state.caller
    rivals = rivals_of(services.watcher.view, name, version) if reroute and version is not None else []
    target = name if version is None else f"{name}/{version}"
    apply = partial(
        services.operate.controls.apply,
        *(action, name, version),
        by=caller.name,
        reason=reason,
        replicas=replicas,
    )
    if dry_run:
        return json_response(await apply(dry_run=True))
    with services.audit.act(action, DONE[action], caller.name, request.client, target):
        done = await apply()
    await services.watcher.refresh()
    if rivals:
        queue = keys.queue_name(name, version or 0)
        moved = await services.operate.reroute.move(queue, rivals)
        left = max(0, done.open_jobs - moved)
        done = msgspec.structs.replace(done, rerouted_jobs=moved, open_jobs=left)
    return json_response(done)


@router.post("/models/{name}/versions/{version}/disable", dependencies=[require("operate")], **docs.DISABLE)
async def disable(
    request: Request, name: str, version: int, reason: Reason = "", dry_run: DryRun = False
) -> Response:
    """Keep routing from choosing a version; requests that name it still reach it."""
    return await _apply(request, "disable", name, version, reason, dry_run=dry_run)


@router.post("/models/{name}/versions/{version}/enable", dependencies=[require("operate")], **docs.ENABLE)
async def enable(
    request: Request, name: str, version: int, reason: Reason = "", dry_run: DryRun = False
) -> Response:
    """Put a disabled or retired version back into service."""
    return await _apply(request, "enable", name, version, reason, dry_run=dry_run)


@router.post("/models/{name}/versions/{version}/retire", dependencies=[require("operate")], **docs.RETIRE)
async def retire(
    request: Request,
    name: str,
    version: int,
    reason: Reason = "",
    reroute: Annotated[
        bool, Query(description="whether the next version of its endpoint gets the jobs that wait")
    ] = False,
    dry_run: DryRun = False,
) -> Response:
    """Accept no more jobs for a version; its accepted jobs still run."""
    return await _apply(request, "retire", name, version, reason, reroute=reroute, dry_run=dry_run)


@router.post("/models/{name}/versions/{version}/pin", dependencies=[require("operate")], **docs.PIN)
async def pin(
    request: Request, name: str, version: int, reason: Reason = "", dry_run: DryRun = False
) -> Response:
    """Have routing choose this version of its model alone."""
    return await _apply(request, "pin", name, version, reason, dry_run=dry_run)


@router.post("/models/{name}/unpin", dependencies=[require("operate")], **docs.UNPIN)
async def unpin(request: Request, name: str, reason: Reason = "", dry_run: DryRun = False) -> Response:
    """Have all versions of a model compete again."""
    return await _apply(request, "unpin", name, None, reason, dry_run=dry_run)


@router.delete("/models/{name}/versions/{version}", dependencies=[require("operate")], **docs.FORGET)
async def forget(
    request: Request, name: str, version: int, reason: Reason = "", dry_run: DryRun = False
) -> Response:
    """Remove a version without workers and jobs: its worker number becomes unknown."""
    return await _apply(request, "forget", name, version, reason, dry_run=dry_run)


@router.get("/jobs", dependencies=[require("operate")], **docs.JOBS)
async def jobs(
    request: Request,
    status: Annotated[str, Query(description="a status, `open` or `finished`")] = "finished",
    model: Annotated[str, Query(description="only jobs of this model")] = "",
    version: Annotated[int | None, Query(ge=1, description="only jobs of this version")] = None,
    code: Annotated[str, Query(description="only jobs with this error code")] = "",
    min_ms: Annotated[float, Query(ge=0, description="least time from arrival to outcome, or until now")] = 0,
    min_attempts: Annotated[int, Query(ge=0, description="least number of claims by a worker")] = 0,
    since_ms: Annotated[
        float, Query(ge=0, description="earliest outcome, or arrival of an open job; ms since the epoch")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="most jobs of the page")] = 100,
    cursor: Annotated[str, Query(description="`next` of the page before")] = "",
) -> Response:
    """Open jobs, oldest first, or recently finished jobs, newest first."""
    services: Services = request.state.services
    wanted = JobFilter(
        status=status,
        model=model,
        version=version,
        code=code,
        min_ms=min_ms,
        min_attempts=min_attempts,
        since_ms=since_ms,
    )
    page = await services.operate.job_history.page(wanted, limit, cursor)
    return json_response(page)


@router.post("/models/{name}/versions/{version}/scale", dependencies=[require("operate")], **docs.SCALE_TO)
async def scale_to(
    request: Request,
    name: str,
    version: int,
    replicas: Replicas,
    reason: Reason = "",
    dry_run: DryRun = False,
) -> Response:
    """Set the number of a version's workers, which `modelyard up` starts and stops."""
    if replicas == "auto":
        return await _apply(request, "unscale", name, version, reason, dry_run=dry_run)
    services: Services = request.state.services
    queue = keys.queue_name(name, version)
    if queue in services.watcher.view.numbers and not any(
        record.queue == queue and record.managed_by == UP for record in services.watcher.view.records
    ):
        raise NotScalableError(
            f"no worker of {name}/{version} runs under `modelyard up`, which alone starts and stops workers; start or "
            f"stop them where they run, or have an autoscaler read GET /scale/{name}/{version}"
        )
    return await _apply(request, "scale", name, version, reason, replicas=replicas, dry_run=dry_run)


@router.get("/decisions", dependencies=[require("operate")], **docs.DECISIONS)
async def decisions(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000, description="number of decisions, newest first")] = 100,
) -> Response:
    """The decisions of operators, circuit breakers and the routing, newest first."""
    services: Services = request.state.services
    return json_response(DecisionList(tuple(await services.operate.decisions.newest(limit))))


@router.get("/findings", dependencies=[require("operate")], **docs.FINDINGS)
async def findings(request: Request) -> Response:
    """Findings of `modelyard doctor` that do not need all data: lost or endangered data, overdue jobs, quarantine."""
    services: Services = request.state.services
    seen = await Examiner(services.client).examine_service(services.watcher.view.numbers)
    found = [PoolFinding(each.kind, each.subject, each.detail) for each in seen.findings.values()]
    found += [PoolFinding("note", "Redis", note) for note in seen.notes]
    with ledger_errors():
        n_quarantined = await services.client.zcard(keys.QUARANTINE)
    if n_quarantined:
        crashed = (
            "1 job has crashed its" if n_quarantined == 1 else f"{n_quarantined:,} jobs have crashed their"
        )
        detail = f"{crashed} workers; `modelyard jobs quarantined` lists what is kept"
        found.append(PoolFinding("quarantined", "jobs", detail))
    return json_response(Findings(tuple(found)))


@router.get("/scale/{name}/{version}", dependencies=[require("operate")], **docs.SCALE)
async def scale(request: Request, name: str, version: int) -> Response:
    """Workers that a version needs; 200 for each version that was ever served, or that modelyard.toml lists."""
    services: Services = request.state.services
    view = services.watcher.view
    queue = keys.queue_name(name, version)
    if queue not in view.numbers and not services.endpoints.is_listed(NamedVersion(name, version)):
        raise UnknownModelError(
            f"the pool has never served version {version} of {name}, and modelyard.toml does not list it"
        )
    with ledger_errors():
        running = await services.client.hlen(keys.running(queue))
    answer = Scale(
        jobs=view.backlog_jobs.get(queue, 0),
        running=running,
        live_replicas=live_replicas(view, queue),
        expected_wait_s=round(expected_wait_s(view, queue), 3),
        wanted_replicas=wanted_replicas(view, queue, services.settings.scale_wait_s),
    )
    return json_response(answer)


@router.post(REGISTRY_WEBHOOK, **docs.REGISTRY_WEBHOOK)
async def registry_webhook(request: Request) -> Response:
    """Take an event of MLflow's registry, so that moved aliases and new versions are followed at once."""
    services: Services = request.state.services
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_EVENT_BYTES:
            raise TooLargeError(f"the event is larger than {MAX_EVENT_BYTES:,} bytes")
    await services.operate.registry_webhook.receive(request.headers, body)
    return Response(status_code=204)
