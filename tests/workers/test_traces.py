"""Traces over real processes: controller and worker write spans of one trace, which the caller began."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import redis

from tests.conftest import RedisServer, wait_until_true
from tests.workers.worker_processes import LIGHT, Start, ready_pids

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = {"MODELYARD_OPENTELEMETRY": "true", "OTEL_TRACES_EXPORTER": "console"}


def spans_of(output: str) -> list[dict[str, Any]]:
    """The spans that OpenTelemetry's console exporter has written."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := output.find("{", at)) >= 0:
        span, at = decoder.raw_decode(output, at)
        found.append(span)
    return found


def test_one_trace_holds_the_request_its_acceptance_its_run_in_the_worker_and_its_wait(
    start_worker: Start, redis_server: RedisServer, free_port: Callable[[], int]
) -> None:
    port = free_port()
    worker = start_worker("1", **LIGHT, **TRACED)
    controller = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", str(port)],
        env=os.environ | {"REDIS_URL": redis_server.url, "MODELYARD_LAME_DUCK_S": "0"} | TRACED,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
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
        told, _ = controller.communicate(timeout=60)
    worker.send_signal(signal.SIGTERM)
    output, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    spans = spans_of(told) + spans_of(output)
    assert [span["attributes"]["http.response.status_code"] for span in spans if span["name"] == "POST"] == [
        200,
        400,
    ]
    own = {span["name"]: span for span in spans if span["context"]["trace_id"] == f"0x{TRACE_ID}"}
    assert own.keys() == {"POST", "accept", "run", "wait"}
    request = own.pop("POST")
    assert request["parent_id"] == f"0x{PARENT_ID}"
    for span in own.values():
        assert span["parent_id"] == request["context"]["span_id"]
        assert span["attributes"]["modelyard.job_id"] == job["id"]
    assert own["run"]["attributes"]["modelyard.worker_id"] == job["worker_id"]
    assert own["run"]["resource"]["attributes"]["service.name"] == "modelyard-worker"


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").is_success
    except httpx.TransportError:
        return False
