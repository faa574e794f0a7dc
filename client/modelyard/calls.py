"""The HTTP API without any I/O: builds calls, reads answers, and defines the sequence of calls.

`modelyard.http` executes these calls, synchronously or with await; `modelyard.retries` decides about repetitions.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from email.utils import mktime_tz, parsedate_tz
from functools import cache
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelyard import errors
from modelyard.client_errors import (
    AnswerUnreadableError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobUnsuccessfulError,
    WaitTimeoutError,
)
from modelyard.errors import (
    ForbiddenError,
    InputNotFiniteError,
    InputNotNumericError,
    ModelyardError,
    NotFoundError,
    QueueFullError,
    UnauthenticatedError,
    UnavailableError,
)
from modelyard.schemas import Job, Pool, Readiness

T = TypeVar("T")
Samples: TypeAlias = NDArray[Any] | list[Any]

MAX_ITEM_BYTES = 8  # wider floats are not a dtype of any model
LONG_POLL_S = 20.0  # below the idle timeout of common proxies and below the controller's limit
STATUS_ERRORS: dict[int, type[ModelyardError]] = {
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    429: QueueFullError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}
UNSUCCESSFUL: dict[str, type[JobUnsuccessfulError]] = {
    "failed": JobFailedError,
    "expired": JobExpiredError,
    "cancelled": JobCancelledError,
}


class SubmitOptions(TypedDict, total=False):
    """Options of a prediction request in addition to its samples.

    Attributes:
        worker: Worker number to use instead of the policy's choice.
        model: Model name to use.
        version: Version of that model to use.
        deadline_s: Seconds until the job expires; default: the controller's.
        idempotency_key: POST requests with the same key are one job; default: a new key for each call.
    """

    worker: int | None
    model: str | None
    version: int | None
    deadline_s: float | None
    idempotency_key: str | None


@dataclass(frozen=True)
class Call(Generic[T]):
    """One HTTP exchange.

    Attributes:
        answer: Type of the answer's JSON document.
        wait_s: Seconds for which the controller may delay its answer.
        answered_with: Statuses besides 2xx that are not errors.
    """

    method: str
    path: str
    answer: type[T]
    query: Mapping[str, str | int | float] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    wait_s: float = 0.0
    answered_with: frozenset[int] = frozenset()

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> T:
        """Read the answer.

        Args:
            status: HTTP status.
            headers: HTTP headers, names in lower case or case-insensitive.
            body: The whole body.

        Raises:
            ModelyardError: The controller refused; the problem's code determines the class.
            AnswerUnreadableError: The body does not match the expected type.
        """
        if not 200 <= status < 300 and status not in self.answered_with:
            raise error_of(status, headers, body)
        try:
            return msgspec.json.decode(body, type=self.answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AnswerUnreadableError(
                f"{self.method} {self.path} was answered with {status} and something that is not a "
                f"{self.answer.__name__.lower()}: {error}; is this a Modelyard controller of this version?"
            ) from None


Flow: TypeAlias = Generator[Call[Any], Any, T]


def submit(
    samples: Samples,
    *,
    wait_s: float = 0.0,
    worker: int | None = None,
    model: str | None = None,
    version: int | None = None,
    deadline_s: float | None = None,
    idempotency_key: str | None = None,
) -> Call[Job]:
    """Post samples.

    Args:
        samples: Array, shape (n_samples, ...) or one sample, or nested lists of the same.
        wait_s: Seconds for which the answer may wait for the outcome.
        worker: See `SubmitOptions`, also for the following options.
        model: Model name to use.
        version: Version of that model to use.
        deadline_s: Seconds until the job expires.
        idempotency_key: POST requests with the same key are one job.

    Raises:
        InputNotNumericError: The samples are not numbers.
        InputNotFiniteError: The samples hold NaN or an infinity.
    """
    content_type, body = encode_samples(samples)
    asked = {"worker": worker, "model": model, "version": version, "deadline": deadline_s}
    return Call(
        method="POST",
        path="/predict",
        answer=Job,
        query={name: value for name, value in asked.items() if value is not None} | _wait(wait_s),
        # Always with a key: without one, repeating a POST whose answer was lost would run it twice.
        headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex, "Content-Type": content_type},
        body=body,
        wait_s=wait_s,
    )


def result(job_id: str, wait_s: float = 0.0) -> Call[Job]:
    """Read a job; its answer may wait `wait_s` seconds for the outcome."""
    return Call("GET", _job_path(job_id), Job, query=_wait(wait_s), wait_s=wait_s)


def cancel(job_id: str) -> Call[Job]:
    """Cancel a job that has not run."""
    return Call("DELETE", _job_path(job_id), Job)


def workers() -> Call[Pool]:
    """Read the pool."""
    return Call("GET", "/workers", Pool)


def ready() -> Call[Readiness]:
    """Ask whether jobs can be accepted; 503 is a valid answer."""
    return Call("GET", "/readyz", Readiness, answered_with=frozenset({503}))


def predict(samples: Samples, wait_s: float, options: SubmitOptions) -> Flow[Job]:
    """Submit, then wait until the job has succeeded.

    Raises:
        JobUnsuccessfulError: It failed, expired or was cancelled.
        WaitTimeoutError: It has no outcome after `wait_s` seconds.
    """
    ends_at_s = time.monotonic() + wait_s
    job = yield submit(samples, wait_s=min(wait_s, LONG_POLL_S), **options)
    return (yield from _until_succeeded(job, ends_at_s))


def wait(job_id: str, timeout_s: float) -> Flow[Job]:
    """Wait until the job has succeeded; raises like `predict`."""
    ends_at_s = time.monotonic() + timeout_s
    job = yield result(job_id, min(timeout_s, LONG_POLL_S))
    return (yield from _until_succeeded(job, ends_at_s))


def _until_succeeded(job: Job, ends_at_s: float) -> Flow[Job]:
    while not job.done and (left_s := ends_at_s - time.monotonic()) > 0:
        job = yield result(job.id, min(left_s, LONG_POLL_S))
    if not job.done:
        raise WaitTimeoutError(job)
    if job.status != "succeeded":
        raise UNSUCCESSFUL[job.status](job)
    return job


def _wait(wait_s: float) -> dict[str, float]:
    return {"wait": round(wait_s, 3)} if wait_s else {}


def _job_path(job_id: str) -> str:
    return f"/results/{quote(job_id, safe='')}"


def encode_samples(samples: Samples) -> tuple[str, bytes]:
    """Encode samples as a request body: an array as a NumPy file, which is exact, lists as JSON.

    Returns:
        The content type and the body.

    Raises:
        InputNotNumericError: They are not numbers.
        InputNotFiniteError: They hold NaN or an infinity.
    """
    if isinstance(samples, np.ndarray) and samples.dtype.kind in "fiu" and samples.itemsize <= MAX_ITEM_BYTES:
        if not np.isfinite(samples).all():
            raise InputNotFiniteError("the samples hold NaN or an infinity; only finite numbers can be sent")
        file = io.BytesIO()
        np.save(file, samples.astype(samples.dtype.newbyteorder("<"), copy=False), allow_pickle=False)
        return "application/x-npy", file.getvalue()
    try:
        body = msgspec.json.encode({"data": samples}, enc_hook=_plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputNotNumericError(
            f"cannot write the samples as JSON: {error}; give an array or nested lists of numbers"
        ) from None
    if b"null" in body:  # JSON's replacement for NaN and infinities
        raise InputNotFiniteError(
            "the samples hold NaN, an infinity or None; only finite numbers can be sent"
        )
    return "application/json", body


def _plain(value: Any) -> Any:
    """Convert an array or a NumPy number inside lists to Python objects.

    Raises:
        TypeError: It is neither of them.
    """
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "bfiu":
        return value.tolist()
    raise TypeError(f"{getattr(value, 'dtype', type(value).__name__)} is no kind of number")


class _Told(msgspec.Struct, frozen=True):
    """The members of a problem document that an error uses; those of a proxy may be incomplete."""

    code: str = ""
    detail: str = ""


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ModelyardError:
    """The error for an answer: by the problem's code, otherwise by the status."""
    try:
        problem = msgspec.json.decode(body, type=_Told)
    except (msgspec.DecodeError, UnicodeDecodeError):  # for example a proxy's error page
        problem = _Told()
    kind = error_classes().get(problem.code) or STATUS_ERRORS.get(status, ModelyardError)
    detail = problem.detail or f"the controller's address answered {status} without saying why"
    error = kind(detail, retry_after_s=_retry_after_s(headers.get("retry-after")))
    error.code = problem.code or error.code  # also a code that only newer controllers know
    return error


@cache
def error_classes() -> dict[str, type[ModelyardError]]:
    """Every class of `modelyard.errors` by its code."""
    tree = [ModelyardError]
    for kind in tree:  # the list grows while it is walked: breadth first
        tree.extend(child for child in kind.__subclasses__() if child.__module__ == errors.__name__)
    return {kind.code: kind for kind in tree}


def _retry_after_s(value: str | None) -> float | None:
    """Seconds of a Retry-After header, in either of its forms (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    at = parsedate_tz(value)
    return None if at is None else max(0.0, mktime_tz(at) - time.time())
