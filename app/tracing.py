"""OpenTelemetry spans: one trace over controller, queue and worker. Off unless a setting asks for it.

The exporter and the sampler are those of OpenTelemetry's own environment variables (`OTEL_TRACES_EXPORTER`,
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_TRACES_SAMPLER`, …).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from app.server_errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

EXPORTERS = "opentelemetry_traces_exporter"
PACKAGE = "pip install 'modelyard[otel]'"
Attributes = Mapping[str, str | int | float]

# The `traceparent` (W3C Trace Context) of the request that this task serves; empty without a trace.
current: ContextVar[str] = ContextVar("traceparent", default="")


class Tracing:
    """Writes the spans of one process.

    Args:
        service: Name of the service, unless `OTEL_SERVICE_NAME` is set.

    Raises:
        ConfigurationError: OpenTelemetry or the exporter is not installed.
    """

    def __init__(self, service: str) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigurationError(f"MODELYARD_OPENTELEMETRY needs OpenTelemetry: {PACKAGE}") from error
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        name = os.environ.get("OTEL_SERVICE_NAME") or service
        self._provider = TracerProvider(resource=Resource.create({"service.name": name}))
        self._provider.add_span_processor(BatchSpanProcessor(_exporter()))
        self._tracer = self._provider.get_tracer("modelyard")

    @contextmanager
    def request(self, method: str, path: str, traceparent: str) -> Iterator[Span]:
        """The span of a request that this task serves; its context is `current` meanwhile."""
        attributes = {"http.request.method": method, "url.path": path}
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(method, self._context(traceparent), kind, attributes)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(span))
        token = current.set(carrier.get("traceparent", ""))
        try:
            yield span
        finally:
            current.reset(token)
            span.end()

    def span(
        self,
        name: str,
        traceparent: str,
        from_ms: float,
        to_ms: float,
        attributes: Attributes,
        links: Sequence[str] = (),
    ) -> None:
        """Write a span that is over.

        Args:
            traceparent: Its parent.
            from_ms: Milliseconds since the epoch.
            to_ms: Milliseconds since the epoch.
            links: Other traces that it belongs to.
        """
        contexts = [self._trace.get_current_span(self._context(each)).get_span_context() for each in links]
        span = self._tracer.start_span(
            name,
            self._context(traceparent),
            attributes=attributes,
            links=[self._trace.Link(context) for context in contexts],
            start_time=int(from_ms * 1e6),
        )
        span.end(int(max(from_ms, to_ms) * 1e6))

    def close(self) -> None:
        """Send the last spans."""
        self._provider.shutdown()

    def _context(self, traceparent: str) -> Context:
        return self._propagator.extract({"traceparent": traceparent}, context=self._empty())

    @staticmethod
    def _empty() -> Context:
        from opentelemetry.context import Context

        return Context()


def _exporter() -> Any:
    wanted = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp_proto_http"
    wanted = "otlp_proto_http" if wanted == "otlp" else wanted
    for found in entry_points(group=EXPORTERS, name=wanted):
        return found.load()()
    known = ", ".join(sorted({each.name for each in entry_points(group=EXPORTERS)}))
    raise ConfigurationError(
        f"OTEL_TRACES_EXPORTER={wanted} is not installed: {PACKAGE}; installed are {known}"
    )
