"""JSON logs: every line of every process is one object, without secrets, with what is known of job and model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.conftest import RedisServer, wait_until_true

BASE = {"time", "level", "logger", "message"}


def lines_of(errors: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in errors.splitlines()]
    assert all(line.keys() >= BASE for line in lines)
    return lines


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", f"import logging\nfrom app import logs\nlogs.configure_logging()\n{code}"],
        env=os.environ | {"MODELYARD_LOG_FORMAT": "json"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_line_holds_the_fields_of_the_call_of_the_context_and_the_traceback_without_secrets() -> None:
    code = (
        "import warnings\nlogs.add_context(lambda: {'model': 'M', 'version': 3})\n"
        "logging.getLogger('a.b').warning('two\\nlines %s', 'x', extra={'batch_id': 'B', 'junk': 1})\n"
        "warnings.warn('old')\n"
        "raise ValueError('the password is pass\"word-1')"
    )
    done = run(code, REDIS_PASSWORD='pass"word-1')
    assert done.returncode == 1
    warned, old, uncaught = lines_of(done.stderr)
    assert (warned["level"], warned["logger"], warned["message"]) == ("warning", "a.b", "two\nlines x")
    assert warned.keys() == BASE | {"model", "version", "batch_id"}
    assert (old["logger"], uncaught["level"]) == ("py.warnings", "critical")
    assert "ValueError: the password is ***" in uncaught["exception"]


def test_the_lines_of_a_controller_and_of_uvicorn_are_json_and_name_the_request(
    redis_server: RedisServer, free_port: Callable[[], int]
) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", str(port), "--access-log"],
        env=os.environ
        | {"REDIS_URL": redis_server.url, "MODELYARD_LOG_FORMAT": "json", "MODELYARD_LAME_DUCK_S": "0"},
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}/workers"
    wait_until_true(lambda: answers(url), 60, "the controller answers")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    lines = lines_of(errors)
    assert {line["logger"] for line in lines} >= {"uvicorn.error", "uvicorn.access", "controller.main"}
    asked = next(line for line in lines if line["logger"] == "uvicorn.access")
    assert (asked["method"], asked["path"], asked["status"]) == ("GET", "/workers", 200)
    assert asked["request_id"] == "ask-1"


@pytest.mark.parametrize(
    ("module", "variables"),
    [("workers", {"REDIS_URL": "unix:///nowhere/redis.sock"}), ("cli", {"MODELYARD_HEARTBEAT_S": "-1"})],
    ids=["no Redis", "a wrong setting"],
)
def test_the_last_line_of_a_worker_that_cannot_start_is_json_too(
    module: str, variables: dict[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *(["worker"] if module == "cli" else [])],
        env=os.environ | {"MODELYARD_LOG_FORMAT": "json"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    last = lines_of(done.stderr)[-1]
    assert (last["level"], last["logger"]) == ("critical", "modelyard")


def answers(url: str) -> bool:
    try:
        return httpx.get(url, headers={"x-request-id": "ask-1"}).status_code == 200
    except httpx.TransportError:
        return False
