"""Modelyard's client: `Client` and `AsyncClient` talk to a controller.

`modelyard.schemas` has the documents that it answers with, `modelyard.errors` and `modelyard.client_errors` the
errors that calls raise.

Modules are imported when one of their names is used, so that the command, which lives here too, starts quickly and
ends quietly on Ctrl-C.
"""

from importlib import import_module

TYPE_CHECKING = False  # as `typing` has it, which takes long to import
if TYPE_CHECKING:
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
    from modelyard.errors import ModelyardError, OutputsNotTabularError
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
    "OutputsNotTabularError",
    "Prediction",
    "Readiness",
    "Replica",
    "RetryPolicy",
    "WaitTimeoutError",
    "WebhookInvalidError",
    "WorkerInfo",
    "verify_webhook",
]

_MODULES = ("errors", "client_errors", "schemas", "inputs", "retries", "parts", "webhooks", "http")

if not TYPE_CHECKING:  # a type checker would take any name that this function may know

    def __getattr__(name: str) -> object:
        """Import the module that has this name; from then on the name is this module's own."""
        if name in __all__:
            for module in _MODULES:
                found = getattr(import_module(f"{__name__}.{module}"), name, None)
                if found is not None:
                    return globals().setdefault(name, found)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
