"""Traces over real processes: controller and worker send spans of one trace, which the caller began, to a collector."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import redis
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tests.conftest import RedisServer, wait_until_true
from tests.workers.worker_processes import LIGHT, Start, ready_pids

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass(frozen=True)
class Span:
    """A span that a process has sent; `service` is of its resource."""

    name: str
    service: object
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, object]


class Collector(ThreadingHTTPServer):
    """Receives spans by the OpenTelemetry protocol over HTTP, as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: list[Span] = []

    def receive(self, body: bytes) -> None:
        """Decode one export; raises if it is none."""
        for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = values(sent.resource.attributes)["service.name"]
            for span in (span for scope in sent.scope_spans for span in scope.spans):
                ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                self.spans.append(Span(span.name, service, *ids, values(span.attributes)))


class Receiver(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        is_export = (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
        if is_export:
            self.server.receive(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200 if is_export else 404)
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_: object) -> None:
        pass


def values(attributes: Iterable[KeyValue]) -> dict[str, object]:
    """Attributes by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs modelyard[otel]: make setup")
    with Collector() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_one_trace_holds_the_request_its_acceptance_its_run_in_the_worker_and_its_wait(
    start_worker: Start, redis_server: RedisServer, free_port: Callable[[], int], collector: Collector
) -> None:
    traced = {
        "MODELYARD_OPENTELEMETRY": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
    }
    port = free_port()
    worker = start_worker("1", **LIGHT, **traced)
    controller = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", str(port)],
        env=os.environ | {"REDIS_URL": redis_server.url, "MODELYARD_LAME_DUCK_S": "0"} | traced,
        stderr=subprocess.DEVNULL,
    )
    try:
        with redis.Redis.from_url(redis_server.url) as client:
            wait_until_true(lambda: ready_pids(client), 60, "the worker is ready")
        url = f"http://127.0.0.1:{port}"
        wait_until_true(lambda: is_ready(url), 60, "the controller is ready")
        began = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
        job = httpx.post(f"{url}/predict?wait=30", json={"data": [0, 1]}, headers=began, timeout=60).json()
        assert job["status"] == "succeeded"
        httpx.post(f"{url}/predict", content=b"{", timeout=60)  # a trace of its own
    finally:
        controller.send_signal(signal.SIGTERM)
        controller.wait(60)
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    spans = collector.spans
    assert [span.attributes["http.response.status_code"] for span in spans if span.name == "POST"] == [
        200,
        400,
    ]
    own = {span.name: span for span in spans if span.trace_id == TRACE_ID}
    assert {name: span.service for name, span in own.items()} == {
        **dict.fromkeys(("POST", "accept", "wait"), "modelyard-controller"),
        "run": "modelyard-worker",
    }
    request = own.pop("POST")
    assert request.parent_id == PARENT_ID
    for span in own.values():
        assert span.parent_id == request.span_id
        assert span.attributes["modelyard.job_id"] == job["id"]
    assert own["run"].attributes["modelyard.worker_id"] == job["worker_id"]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False
