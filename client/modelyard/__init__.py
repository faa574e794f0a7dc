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
    OutputsNotJoinableError,
    WaitTimeoutError,
    WebhookInvalidError,
)
from modelyard.errors import ModelyardError
from modelyard.http import AsyncClient, Client
from modelyard.inputs import Body
from modelyard.parts import JoinedJob
from modelyard.retries import RetryPolicy
from modelyard.schemas import Job, Prediction, Readiness, Replica, WorkerInfo
from modelyard.webhooks import verify_webhook

__all__ = [
    "AnswerUnreadableError",
    "AsyncClient",
    "Body",
    "Client",
    "ControllerUnreachableError",
    "Job",
    "JobCancelledError",
    "JobExpiredError",
    "JobFailedError",
    "JobUnsuccessfulError",
    "JoinedJob",
    "ModelyardError",
    "OutputsNotJoinableError",
    "Prediction",
    "Readiness",
    "Replica",
    "RetryPolicy",
    "WaitTimeoutError",
    "WebhookInvalidError",
    "WorkerInfo",
    "verify_webhook",
]
