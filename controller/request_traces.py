"""The controller's spans: one for each POST, and below it `accept` and `wait` for each of its jobs."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.clock import PoolClock
from app.ledger import ids
from app.ledger.wire import BatchHead
from app.settings import ControllerSettings
from app.tracing import Attributes, Tracing
from controller.events import Accepted, Completed


class RequestTraces:
    """Writes the spans.

    Args:
        clock: Redis's clock, in whose time jobs are measured.
    """

    def __init__(self, tracing: Tracing, clock: PoolClock) -> None:
        self._tracing = tracing
        self._clock = clock
        self.close = tracing.close

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request within its span."""
        headers: dict[bytes, bytes] = dict(scope["headers"])
        parent = headers.get(b"traceparent", b"").decode("latin-1")
        with self._tracing.request(scope["method"], scope["path"], parent) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await app(scope, receive, send_and_note)

    def accepted(self, event: Accepted) -> None:
        """Write `accept`, from the arrival of each request to the storing of its job."""
        batch, now_ms = event.accept.batch, self._clock.now_ms()
        for index, trace in enumerate(batch.head.traces):
            if trace:
                start_ms = batch.head.jobs[index].received_at_ms
                self._tracing.span(
                    "accept", trace, start_ms, now_ms, _of_job(batch.batch_id, index, batch.head)
                )

    def completed(self, event: Completed) -> None:
        """Write `wait`, from the sending of each job to the receipt of its outcome."""
        start_ms, heard_at_ms = ids.accepted_at_ms(event.batch_id), self._clock.ms_at(event.heard_at_s)
        for index, trace in enumerate(event.head.traces):
            if trace:
                attributes = {
                    **_of_job(event.batch_id, index, event.head),
                    "modelyard.status": event.outcome.jobs[index].status,
                }
                self._tracing.span("wait", trace, start_ms, heard_at_ms, attributes)


def open_traces(settings: ControllerSettings, clock: PoolClock) -> RequestTraces | None:
    """The traces of a controller; None if they are off.

    Raises:
        ConfigurationError: A package is missing.
    """
    return RequestTraces(Tracing("modelyard-controller"), clock) if settings.opentelemetry else None


def _of_job(batch_id: str, index: int, head: BatchHead) -> Attributes:
    return {
        "modelyard.job_id": ids.job_id(batch_id, index),
        "modelyard.model": head.model_name,
        "modelyard.version": head.model_version,
    }
