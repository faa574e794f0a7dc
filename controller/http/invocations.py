"""MLflow's scoring protocol: clients of `mlflow models serve` only change the address.

Bodies are read as in MLflow, unless that would change or lose a value; docs/models.md lists the differences.
"""

from __future__ import annotations

from importlib import metadata

import orjson
from fastapi import APIRouter, Request, Response

from app.contract.documents import is_unified
from app.ledger import ids
from app.server_errors import (
    BodyKeyError,
    BodyNotArrayError,
    BodyNotJsonError,
    ForbiddenError,
    HostNotAllowedError,
    InputError,
    InputTypeError,
    ModelyardError,
    NotFoundError,
    OriginNotAllowedError,
    ParamsError,
    QueueFullError,
    RateLimitError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from controller.admission.authentication import require
from controller.http import documentation as docs
from controller.http import readiness
from controller.http.job_json import predictions_json, result_url
from controller.http.prediction_request import version_of
from controller.http.problems import problem, status_of
from controller.http.responses import JSON
from controller.http.waiting_post import later, no_outcome, read_post
from controller.jobs import Job
from controller.selector import Selector
from controller.services import Services

router = APIRouter()
PATH = "/invocations"  # the end of each path of the protocol that predicts
CONTENT_TYPES = ("application/json", "text/csv", "application/vnd.apache.parquet")
# MLflow's error codes; the first listed class of an error's MRO counts.
ERROR_CODES: dict[type[ModelyardError], str] = {
    BodyNotJsonError: "BAD_REQUEST",
    BodyKeyError: "BAD_REQUEST",
    BodyNotArrayError: "BAD_REQUEST",
    ParamsError: "INVALID_PARAMETER_VALUE",
    InputTypeError: "BAD_REQUEST",
    InputError: "INVALID_PARAMETER_VALUE",
    TooLargeError: "BAD_REQUEST",
    UnauthenticatedError: "UNAUTHENTICATED",
    ForbiddenError: "PERMISSION_DENIED",
    HostNotAllowedError: "PERMISSION_DENIED",
    OriginNotAllowedError: "PERMISSION_DENIED",
    NotFoundError: "RESOURCE_DOES_NOT_EXIST",
    QueueFullError: "REQUEST_LIMIT_EXCEEDED",
    RateLimitError: "REQUEST_LIMIT_EXCEEDED",
    UnavailableError: "TEMPORARILY_UNAVAILABLE",
    ModelyardError: "INTERNAL_ERROR",
}
# Statuses of failed jobs by error code: errors of the model or its input, and timeouts.
FAILED_STATUS = {"timed_out": 504, "job_expired": 504, "job_cancelled": 409, "job_quarantined": 500}


@router.post("/invocations", dependencies=[require("predict")], **docs.INVOCATIONS)
async def invocations(request: Request) -> Response:
    """Predict as MLflow's scoring server does; the version is routed, or the one that the query names."""
    return await _invoke(request)


@router.post("/endpoints/{name}/invocations", dependencies=[require("predict")], **docs.INVOCATIONS)
async def endpoint_invocations(request: Request, name: str) -> Response:
    """The same, for the versions of an endpoint, as MLflow's deployment clients call it."""
    return await _invoke(request, endpoint=name)


@router.post("/models/{name}/invocations", dependencies=[require("predict")], **docs.INVOCATIONS)
async def model_invocations(request: Request, name: str) -> Response:
    """The same, for the versions of a model."""
    return await _invoke(request, name)


@router.post(
    "/models/{name}/versions/{version}/invocations", dependencies=[require("predict")], **docs.INVOCATIONS
)
async def version_invocations(request: Request, name: str, version: str) -> Response:
    """The same, for one version."""
    return await _invoke(request, name, version)


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


async def _invoke(
    request: Request, model: str | None = None, version: str | None = None, endpoint: str | None = None
) -> Response:
    services: Services = request.state.services
    try:
        number = None if version is None else version_of(version)
        selector = Selector(model=model, version=number, endpoint=endpoint)
        refused = _refused_type(request.headers.get("content-type", JSON))
        return refused or await _predict(request, services, selector)
    except ModelyardError as error:
        services.refusals.reply_to(error, request.client, "POST", "/invocations")
        return refusal(error)


def _refused_type(content_type: str) -> Response | None:
    """The answer to a body of a type that is not read. A semicolon at the end changes nothing."""
    kind, *parameters = [part.strip() for part in content_type.split(";")]
    given = dict(part.lower().partition("=")[::2] for part in parameters if part)
    if given.pop("charset", "utf-8").strip('"') != "utf-8":
        return Response("The scoring server only supports UTF-8", 415, media_type="text/plain")
    if given:
        text = f"Unrecognized content type parameters: {', '.join(sorted(given))}"
        return Response(text, 415, media_type="text/plain")
    if kind.lower() not in CONTENT_TYPES:
        text = f"This predictor only supports the following content types: {', '.join(CONTENT_TYPES)}"
        return Response(text, 415, media_type="text/plain")
    return None


async def _predict(request: Request, services: Services, selector: Selector) -> Response:
    post = await read_post(request, services, selector)
    job = await services.predict.submit_and_wait(post.request, post.body, reading="mlflow")
    if job.error:
        raise job.error
    if post.gets_job(job):
        return later(job, services.settings.prefix)
    return _answer(services, job, post.body)


def _answer(services: Services, job: Job, body: bytes) -> Response:
    assert job.batch
    outcome = job.batch.outcome
    if outcome is None:
        status, code, text = no_outcome(job, services.drain)
        location = result_url(ids.job_id(job.batch.batch_id, job.index), services.settings.prefix)
        error_code = "DEADLINE_EXCEEDED" if status == 504 else "TEMPORARILY_UNAVAILABLE"
        headers = {"location": location, **({"retry-after": "1"} if status == 503 else {})}
        return _document(status, error_code, text, code, headers)
    own = outcome.jobs[job.index]
    if own.status == "succeeded":
        predictions = predictions_json(own)
        wrapped = predictions if is_unified(body) else f'{{"predictions": {predictions}}}'
        return Response(wrapped, media_type=JSON)
    status = FAILED_STATUS.get(own.error_code, 400)
    code = {400: "BAD_REQUEST", 504: "DEADLINE_EXCEEDED"}.get(status, "INTERNAL_ERROR")
    return _document(status, code, own.error_detail, own.error_code)


def refusal(error: ModelyardError) -> Response:
    """The answer to an error, as MLflow's clients read it."""
    code = next(ERROR_CODES[kind] for kind in type(error).__mro__ if kind in ERROR_CODES)
    _, headers, _ = problem(error)
    kept = {
        name.decode(): value.decode()
        for name, value in headers
        if name in (b"retry-after", b"www-authenticate")
    }
    status = 400 if isinstance(error, InputError) else int(status_of(error))
    return _document(status, code, error.detail, error.code, kept)


def _document(
    status: int, error_code: str, message: str, code: str, headers: dict[str, str] | None = None
) -> Response:
    """MLflow's error document; `code` is this server's own, as in its problem documents."""
    body = orjson.dumps({"error_code": error_code, "message": message, "code": code})
    return Response(body, status, headers, media_type=JSON)
