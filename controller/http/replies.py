"""Complete HTTP answers, and the only conversion of errors into answers of this API."""

from __future__ import annotations

import logging

import msgspec

from app.ledger import ids
from app.ledger.ids import JobRef
from app.server_errors import ForbiddenError, ModelyardError, TooLargeError, UnauthenticatedError
from controller.admission.audit_log import Audit, Client
from controller.http.draining import Drain
from controller.http.job_json import job_json, result_url
from controller.http.problems import problem
from controller.http.response_headers import CLOSE, Headers
from controller.jobs import Job
from controller.metrics import Metrics

logger = logging.getLogger(__name__)
JSON = (b"content-type", b"application/json")
INTERNAL = "an internal error occurred; the controller's log has the details"


class Reply(msgspec.Struct, frozen=True):
    """A complete HTTP answer."""

    status: int
    headers: Headers
    body: bytes


class Refusals:
    """Converts errors into replies, counts them, and writes refused API keys to the audit log.

    Args:
        limits: Members of the problem of a request that is too large.
    """

    def __init__(self, metrics: Metrics, audit: Audit, limits: dict[str, int] | None = None) -> None:
        self._limits = limits or {}
        self._metrics = metrics
        self._audit = audit

    def reply(self, error: Exception, **members: str) -> Reply:
        """The answer to an error.

        Args:
            **members: Extension members of the problem document.
        """
        if not isinstance(error, ModelyardError):
            logger.error("unforeseen error", exc_info=error)
            error = ModelyardError(INTERNAL)
        self._metrics.rejected(error.code)
        limits = self._limits if isinstance(error, TooLargeError) else {}
        status, headers, body = problem(error, **members, **limits)
        if isinstance(error, TooLargeError):
            headers.append(CLOSE)  # the rest of the body is not read
        return Reply(status, headers, body)

    def reply_to(self, error: Exception, client: Client, method: str, path: str, key: str = "") -> Reply:
        """The answer to a refused request.

        Args:
            key: Name of its API key, if it has a valid one.
        """
        if isinstance(error, UnauthenticatedError | ForbiddenError):
            self._audit.refuse("request", error, client, key=key, method=method, path=path)
        return self.reply(error)


def gets_job(job: Job, wait_s: float) -> bool:
    """Whether a caller that prefers a job gets it: if it does not wait, also where the outcome has come meanwhile."""
    assert job.batch
    is_pending = job.batch.outcome is None and not job.expired
    return is_pending or not wait_s


def later(job: Job, prefix: str) -> Reply:
    """The answer with the job and the URL of its result; `prefix` as of `result_url`."""
    assert job.batch
    ref = JobRef(job.batch.batch_id, job.index)
    location = result_url(ids.job_id(ref.batch_id, ref.index), prefix)
    body = job_json(ref, job.batch.head, "queued", None, prefix)
    return Reply(202, [JSON, (b"location", location.encode())], body)


def no_outcome(job: Job, drain: Drain) -> tuple[int, str, str]:
    """Status, code and text for a caller of another protocol whose wait ended before the outcome came."""
    if job.expired:
        return 504, "job_expired", "no worker took the job in time"
    if drain.is_over:
        return 503, "draining", "this controller is stopping; the job was accepted and goes on"
    return 504, "not_done", "the outcome did not come in time; the job goes on"
