"""Complete HTTP answers, and the only conversion of errors into answers."""

from __future__ import annotations

import logging

import msgspec

from app.server_errors import ForbiddenError, ModelyardError, TooLargeError, UnauthenticatedError
from controller.admission.audit_log import Audit, Client
from controller.http.problems import problem
from controller.http.response_headers import CLOSE, Headers
from controller.metrics import Metrics

logger = logging.getLogger(__name__)


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
            error = ModelyardError("an internal error occurred; the controller's log has the details")
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
