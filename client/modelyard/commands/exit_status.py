"""Exit statuses of the `modelyard` command."""

from __future__ import annotations

from modelyard.client_errors import JobUnsuccessfulError, WaitTimeoutError
from modelyard.errors import ModelyardError, QueueFullError, RateLimitError, UnavailableError

FAILED = 1  # status 2 is click's, for a wrong use of the command line
UNAVAILABLE = 3
JOB_UNSUCCESSFUL = 4
NO_OUTCOME = 5
STATUSES: dict[type[ModelyardError], int] = {
    UnavailableError: UNAVAILABLE,
    QueueFullError: UNAVAILABLE,
    RateLimitError: UNAVAILABLE,
    JobUnsuccessfulError: JOB_UNSUCCESSFUL,
    WaitTimeoutError: NO_OUTCOME,
}


def exit_status(error: ModelyardError) -> int:
    """The status that says what kind of error ended a command."""
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), FAILED)
