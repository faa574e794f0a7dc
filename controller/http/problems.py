"""Maps error classes to HTTP statuses, and encodes errors as problem documents (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus

import orjson

from app import server_errors
from app.server_errors import ModelyardError
from controller.input.bodies import ACCEPTED_TYPES

PROBLEM_JSON = b"application/problem+json"

# The first class of an error's MRO that is listed here counts.
STATUS: dict[type[ModelyardError], HTTPStatus] = {
    ModelyardError: HTTPStatus.INTERNAL_SERVER_ERROR,
    server_errors.InputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    server_errors.BodyNotJsonError: HTTPStatus.BAD_REQUEST,
    server_errors.BodyNotArrayError: HTTPStatus.BAD_REQUEST,
    server_errors.BodyCodingError: HTTPStatus.BAD_REQUEST,
    server_errors.MalformedRequestError: HTTPStatus.BAD_REQUEST,
    server_errors.TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    server_errors.HeadTooLargeError: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    server_errors.RequestTimeoutError: HTTPStatus.REQUEST_TIMEOUT,
    server_errors.UnsupportedError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    server_errors.HostNotAllowedError: HTTPStatus.MISDIRECTED_REQUEST,
    server_errors.OriginNotAllowedError: HTTPStatus.FORBIDDEN,
    server_errors.UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    server_errors.ForbiddenError: HTTPStatus.FORBIDDEN,
    server_errors.NotFoundError: HTTPStatus.NOT_FOUND,
    server_errors.JobGoneError: HTTPStatus.GONE,
    server_errors.ModelNotServedError: HTTPStatus.GONE,
    server_errors.ConflictError: HTTPStatus.CONFLICT,
    server_errors.QueueFullError: HTTPStatus.TOO_MANY_REQUESTS,
    server_errors.RateLimitError: HTTPStatus.TOO_MANY_REQUESTS,
    server_errors.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
}
DEFAULT_RETRY_AFTER_S = 1.0
# Additional headers by class: the supported formats (RFC 9110, section 12.5.3; W3C LDP, section 7.1).
HEADERS: dict[type[ModelyardError], tuple[bytes, bytes]] = {
    server_errors.UnsupportedTypeError: (b"accept-post", ACCEPTED_TYPES.encode()),
    server_errors.UnsupportedCodingError: (b"accept-encoding", b"gzip, deflate"),
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
