"""Security headers on every answer, and nothing of a bad request in the answer to it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from hashlib import sha256

import pytest

from tests.controller.conftest import HandWorker, Serve

HandWorkers = Callable[..., HandWorker]
MARK = "mark<script>"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/predict", 202),
        ("POST", "/predict?worker=9", 404),
        ("GET", "/predict", 405),
        ("GET", "/results/x", 404),
        ("GET", "/workers", 200),
        ("GET", "/workers/", 200),
        ("GET", "/metrics", 200),
        ("GET", "/healthz", 200),
        ("GET", "/no-such-path", 404),
        ("GET", "/static-offline-docs/swagger-ui.css", 200),
    ],
)
async def test_an_answer_is_not_to_be_stored_guessed_at_framed_or_run(
    serve: Serve, hand_worker: HandWorkers, method: str, path: str, status: int
) -> None:
    hand_worker()
    served = await serve()
    answer = await served.http.request(
        method, path, content=b'{"data": [1, 2]}' if method == "POST" else None
    )
    assert answer.status_code == status
    expected = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    }
    assert {name: answer.headers.get(name) for name in expected} == expected
    assert all(answer.headers.get_list(name) == [value] for name, value in expected.items())


@pytest.mark.parametrize("path", ["/docs", "/docs/oauth2-redirect"])
async def test_a_documentation_page_runs_its_own_scripts_and_no_other(serve: Serve, path: str) -> None:
    page = await (await serve()).http.get(path)
    policy = page.headers["content-security-policy"]
    scripts = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    assert scripts
    for script in scripts:
        assert base64.b64encode(sha256(script.encode()).digest()).decode() in policy
    (allowed,) = re.findall(r"script-src ([^;]*)", policy)
    assert "unsafe" not in allowed
    assert policy.startswith("default-src 'none'")
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("GET", f"/{MARK}", {}, ""),
        ("GET", f"/results/{MARK}", {}, ""),
        ("DELETE", f"/results/{MARK}", {}, ""),
        ("GET", f"/results/x?wait={MARK}", {}, ""),
        ("POST", f"/predict?{MARK}=1", {}, '{"data": [1, 2]}'),
        ("POST", f"/predict?worker={MARK}", {}, '{"data": [1, 2]}'),
        ("POST", f"/predict?model={MARK}", {}, '{"data": [1, 2]}'),
        ("POST", f"/predict?wait={MARK}", {}, '{"data": [1, 2]}'),
        ("POST", "/predict", {}, MARK),
        ("POST", "/predict", {}, f'{{"{MARK}": [1, 2]}}'),
        ("POST", "/predict", {}, f'{{"data": ["{MARK}"]}}'),
        ("POST", "/predict", {"content-encoding": MARK}, '{"data": [1, 2]}'),
        ("POST", "/predict", {"idempotency-key": MARK * 99}, '{"data": [1, 2]}'),
        (MARK.partition("<")[0].upper(), "/predict", {}, ""),
    ],
)
async def test_a_problem_repeats_nothing_of_the_request(
    serve: Serve, hand_worker: HandWorkers, method: str, path: str, headers: dict[str, str], body: str
) -> None:
    hand_worker()
    served = await serve()
    answer = await served.http.request(method, path, headers=headers, content=body)
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "mark" not in answer.text.lower()
