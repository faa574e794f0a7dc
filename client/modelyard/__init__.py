"""Modelyard's client: `Client` and `AsyncClient` talk to a controller.

`modelyard.schemas` has the documents that it answers with, `modelyard.errors` and `modelyard.client_errors` the
errors that calls raise.
"""

from modelyard.client_errors import (
    AnswerUnreadableError,
    ControllerUnreachableError,
    JobCancelledError,
    JobExpiredError,
    JobFailedError,
    JobUnsuccessfulError,
    WaitTimeoutError,
)
from modelyard.errors import ModelyardError
from modelyard.http import AsyncClient, Client
from modelyard.retries import RetryPolicy
from modelyard.schemas import Job, Prediction, Readiness, Replica, WorkerInfo

__all__ = [
    "AnswerUnreadableError",
    "AsyncClient",
    "Client",
    "ControllerUnreachableError",
    "Job",
    "JobCancelledError",
    "JobExpiredError",
    "JobFailedError",
    "JobUnsuccessfulError",
    "ModelyardError",
    "Prediction",
    "Readiness",
    "Replica",
    "RetryPolicy",
    "WaitTimeoutError",
    "WorkerInfo",
]
