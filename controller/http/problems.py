"""Maps error classes to HTTP statuses, and encodes errors as problem documents (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus

import orjson

from app import errors
from app.errors import ModelyardError
from controller.input.bodies import ACCEPTED_TYPES

PROBLEM_JSON = b"application/problem+json"

# The first class of an error's MRO that is listed here counts.
STATUS: dict[type[ModelyardError], HTTPStatus] = {
    ModelyardError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.InputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.BodyNotJsonError: HTTPStatus.BAD_REQUEST,
    errors.BodyNotArrayError: HTTPStatus.BAD_REQUEST,
    errors.BodyCodingError: HTTPStatus.BAD_REQUEST,
    errors.MalformedRequestError: HTTPStatus.BAD_REQUEST,
    errors.TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.HeadTooLargeError: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.RequestTimeoutError: HTTPStatus.REQUEST_TIMEOUT,
    errors.UnsupportedError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.HostNotAllowedError: HTTPStatus.MISDIRECTED_REQUEST,
    errors.OriginNotAllowedError: HTTPStatus.FORBIDDEN,
    errors.UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    errors.ForbiddenError: HTTPStatus.FORBIDDEN,
    errors.NotFoundError: HTTPStatus.NOT_FOUND,
    errors.JobGoneError: HTTPStatus.GONE,
    errors.ModelNotServedError: HTTPStatus.GONE,
    errors.ConflictError: HTTPStatus.CONFLICT,
    errors.QueueFullError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.RateLimitError: HTTPStatus.TOO_MANY_REQUESTS,
    errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
DEFAULT_RETRY_AFTER_S = 1.0
# Additional headers by class: the supported formats (RFC 9110, section 12.5.3; W3C LDP, section 7.1).
HEADERS: dict[type[ModelyardError], tuple[bytes, bytes]] = {
    errors.UnsupportedTypeError: (b"accept-post", ACCEPTED_TYPES.encode()),
    errors.UnsupportedCodingError: (b"accept-encoding", b"gzip, deflate"),
}
CHALLENGE = (b"www-authenticate", b'Bearer realm="modelyard"')


def status_of(error: ModelyardError) -> HTTPStatus:
    """HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(error: ModelyardError, **members: str | int) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to an error.

    Args:
        **members: Extension members of the body (RFC 9457, section 3.2).
    """
    status = status_of(error)
    headers = [(b"content-type", PROBLEM_JSON)]
    if type(error) in HEADERS:
        headers.append(HEADERS[type(error)])
    if status is HTTPStatus.UNAUTHORIZED:
        headers.append(CHALLENGE)
    retry_after_s = error.retry_after_s
    if retry_after_s is None and status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        retry_after_s = DEFAULT_RETRY_AFTER_S
    if retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(retry_after_s)).encode()))
    return status, headers, problem_body(status, error.code, error.detail, **members)


def problem_body(status: int, code: str, detail: str, **members: str | int) -> bytes:
    """A problem document."""
    return orjson.dumps(
        {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "code": code,
            "detail": detail,
            **members,
        }
    )
