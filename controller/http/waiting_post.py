"""Shared code of POST requests in other servers' protocols: they wait for the outcome, unless they prefer a job."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from app.ledger import ids
from app.ledger.ids import JobRef
from app.server_errors import InputError
from controller import predict
from controller.http.draining import Drain
from controller.http.job_json import job_json, result_url
from controller.http.prediction_request import ANY, joined, parse_query, stated_wait_s
from controller.input.content_coding import IDENTITY, unpack
from controller.jobs import Job
from controller.selector import Selector
from controller.services import Services


class WaitingPost(msgspec.Struct, frozen=True):
    """An admitted POST request with its body.

    Attributes:
        is_async: Whether its caller prefers a job and reads the outcome later.
    """

    request: predict.Request
    body: bytes
    is_async: bool

    def gets_job(self, job: Job) -> bool:
        """Whether its answer is the accepted job: if it does not wait, also where the outcome has come meanwhile."""
        assert job.batch
        is_pending = job.batch.outcome is None and not job.expired
        return self.is_async and (is_pending or not self.request.asked.wait_s)


async def read_post(request: Request, services: Services, of_path: Selector) -> WaitingPost:
    """Admit a POST request and read its body; without a stated wait it waits as long as the settings allow.

    Args:
        of_path: The selector in its path.

    Raises:
        ModelyardError: The request is refused.
    """
    scope = request.scope
    entered = services.predict.enter(scope["headers"], scope["query_string"], scope.get("client"))
    asked, query, prefer = (
        entered.asked,
        parse_query(scope["query_string"]),
        request.headers.get("prefer", ""),
    )
    is_async = "respond-async" in prefer
    if not is_async and not stated_wait_s(query, prefer.encode()):
        asked = replace(asked, wait_s=services.settings.max_wait_s)
    if of_path != ANY:
        selector = joined(of_path, asked.selector)
        deadline_s = services.endpoints.deadline_s(selector) if query.deadline_s is None else query.deadline_s
        asked = replace(asked, selector=selector, deadline_s=deadline_s)
    body = await _read_body(request, services)
    return WaitingPost(msgspec.structs.replace(entered, asked=asked), body, is_async)


async def _read_body(request: Request, services: Services) -> bytes:
    check_size = services.predict.check_size
    check_size(int(request.headers.get("content-length", "0")))
    parts, size = [], 0
    try:
        async for part in request.stream():
            parts.append(part)
            size += len(part)
            check_size(size)
    except ClientDisconnect:
        raise InputError("the connection was closed before the whole body arrived") from None
    coding, body = request.headers.get("content-encoding", "").encode(), b"".join(parts)
    if coding in IDENTITY:
        return body
    return await asyncio.to_thread(unpack, coding, body, services.settings.max_body_bytes)


def later(job: Job, prefix: str) -> Response:
    """The answer with the job and the URL of its result; `prefix` as of `result_url`."""
    assert job.batch
    ref = JobRef(job.batch.batch_id, job.index)
    body = job_json(ref, job.batch.head, "queued", None, prefix)
    location = result_url(ids.job_id(ref.batch_id, ref.index), prefix)
    return Response(body, 202, {"location": location}, media_type="application/json")


def no_outcome(job: Job, drain: Drain) -> tuple[int, str, str]:
    """Status, code and text for a caller whose wait ended before the outcome came."""
    if job.expired:
        return 504, "job_expired", "no worker took the job in time"
    if drain.is_over:
        return 503, "draining", "this controller is stopping; the job was accepted and goes on"
    return 504, "not_done", "the outcome did not come in time; the job goes on"
