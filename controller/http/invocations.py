"""MLflow's scoring protocol: clients of `mlflow models serve` only change the address.

`controller.predict` handles their requests; this module has the answers. Bodies are read as in MLflow, unless that
would change or lose a value; docs/models.md lists the differences.
"""

from __future__ import annotations

import orjson

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
    UnsupportedTypeError,
)
from controller.http.draining import Drain
from controller.http.job_json import predictions_json, result_url
from controller.http.prediction_request import Asked
from controller.http.problems import problem
from controller.http.replies import INTERNAL, JSON, Reply, gets_job, later, no_outcome
from controller.http.response_headers import CLOSE
from controller.jobs import Job

PATH = "/invocations"  # the end of each path of the protocol that predicts
TEXT = (b"content-type", b"text/plain; charset=utf-8")
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


def reply(job: Job, asked: Asked, prefix: str, drain: Drain) -> Reply:
    """The reply to the request of an accepted job whose wait is over; `prefix` as of `result_url`."""
    assert job.batch
    outcome = job.batch.outcome
    if asked.is_async and gets_job(job, asked.wait_s):
        return later(job, prefix)
    if outcome is None:
        status, code, text = no_outcome(job, drain)
        location = result_url(ids.job_id(job.batch.batch_id, job.index), prefix)
        error_code = "DEADLINE_EXCEEDED" if status == 504 else "TEMPORARILY_UNAVAILABLE"
        headers = [(b"location", location.encode()), *([(b"retry-after", b"1")] if status == 503 else [])]
        return _document(status, error_code, text, code, *headers)
    own = outcome.jobs[job.index]
    if own.status == "succeeded":
        predictions = predictions_json(own)
        answer = predictions if job.is_unified else f'{{"predictions": {predictions}}}'
        return Reply(200, [JSON], answer.encode())
    status = FAILED_STATUS.get(own.error_code, 400)
    code = {400: "BAD_REQUEST", 504: "DEADLINE_EXCEEDED"}.get(status, "INTERNAL_ERROR")
    return _document(status, code, own.error_detail, own.error_code)


def refusal(error: Exception) -> Reply:
    """The answer to an error, as MLflow's clients read it."""
    if not isinstance(error, ModelyardError):
        error = ModelyardError(INTERNAL)
    code = next(ERROR_CODES[kind] for kind in type(error).__mro__ if kind in ERROR_CODES)
    status, headers, _ = problem(error)
    own = [(name, value) for name, value in headers if name in (b"retry-after", b"www-authenticate")]
    if isinstance(error, UnsupportedTypeError):
        return Reply(status, [TEXT, *own], error.detail.encode())
    if isinstance(error, TooLargeError):
        own.append(CLOSE)  # the rest of the body is not read
    return _document(400 if isinstance(error, InputError) else status, code, error.detail, error.code, *own)


def _document(status: int, error_code: str, message: str, code: str, *headers: tuple[bytes, bytes]) -> Reply:
    """MLflow's error document; `code` is this server's own, as in its problem documents."""
    body = orjson.dumps({"error_code": error_code, "message": message, "code": code})
    return Reply(status, [JSON, *headers], body)
