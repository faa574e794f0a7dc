"""Every bad request gets a problem document that says what was expected, and none reaches a queue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from app.contract import AnyContract
from tests.controller.conftest import HandWorker, Serve, nothing_is_queued
from tests.pool_samples import CONTRACT

HandWorkers = Callable[..., HandWorker]
GOOD = b'{"data": [1, 2]}'
Case = tuple[str, bytes, dict[str, str], int, str, str]

CASES: dict[str, Case] = {
    "not JSON": ("", b"data=1", {}, 400, "body_not_json", "not JSON"),
    "no body": ("", b"", {}, 400, "body_not_json", "not JSON"),
    "wrong key": ("", b'{"date": [1, 2]}', {}, 422, "body_wrong_key", '"data", "inputs", "instances"'),
    "two keys": ("", b'{"data": [1, 2], "inputs": [1, 2]}', {}, 422, "body_wrong_key", "exactly one key"),
    "a key twice": ("", b'{"data": [1, 2], "data": [1, 2]}', {}, 422, "body_wrong_key", "exactly one"),
    "ragged": ("", b'{"data": [[1, 2], [3]]}', {}, 422, "input_wrong_shape", "ragged"),
    "too few numbers": ("", b'{"data": [1]}', {}, 422, "input_wrong_shape", "shape (n, 2)"),
    "wrong nesting": ("", b'{"data": [[[1], [2]]]}', {}, 422, "input_wrong_shape", "shape (n, 2)"),
    "no array": ("", b'{"data": 1}', {}, 422, "input_wrong_shape", "an array of numbers"),
    "strings": ("", b'{"data": ["1", "2"]}', {}, 422, "input_not_numeric", "numbers only"),
    "nulls": ("", b'{"data": [1, null]}', {}, 422, "input_not_numeric", "numbers only"),
    "booleans": ("", b'{"data": [true, 1]}', {}, 422, "input_not_numeric", "numbers only"),
    "NaN": ("", b'{"data": [NaN, 1]}', {}, 422, "input_not_finite", "finite numbers"),
    "infinity": ("", b'{"data": [-Infinity, 1]}', {}, 422, "input_not_finite", "finite numbers"),
    "beyond float32": ("", b'{"data": [1e39, 1]}', {}, 422, "input_not_finite", "finite float32"),
    "empty": ("", b'{"data": []}', {}, 422, "input_empty", "at least one"),
    "empty rows": ("", b'{"data": [[], []]}', {}, 422, "input_empty", "at least one"),
    "too many samples": (
        "",
        b'{"data": [[1,2],[1,2],[1,2],[1,2],[1,2]]}',
        {},
        413,
        "request_too_large",
        "at most 4",
    ),
    "too many bytes": ("", b" " * 1025 + GOOD, {}, 413, "request_too_large", "1024 bytes"),
    "unknown worker": ("?worker=9", GOOD, {}, 404, "worker_unknown", "known numbers: 1, 2"),
    "unknown model": ("?model=X", GOOD, {}, 404, "model_unknown", "known models"),
    "unknown version": ("?version=9", GOOD, {}, 404, "model_unknown", "known versions: 1, 2"),
    "contradiction": ("?worker=1&version=2", GOOD, {}, 422, "parameters_contradict", "leave one of them out"),
    "worker zero": ("?worker=0", GOOD, {}, 422, "parameter_invalid", "whole number from 1"),
    "worker not a number": ("?worker=one", GOOD, {}, 422, "parameter_invalid", "whole number"),
    "wait too long": ("?wait=61", GOOD, {}, 422, "parameter_invalid", "from 0 to 60"),
    "wait negative": ("?wait=-1", GOOD, {}, 422, "parameter_invalid", "number of seconds"),
    "wait not a number": ("?wait=nan", GOOD, {}, 422, "parameter_invalid", "number of seconds"),
    "deadline zero": ("?deadline=0", GOOD, {}, 422, "parameter_invalid", "from 0.001 to 3600"),
    "deadline too long": ("?deadline=3601", GOOD, {}, 422, "parameter_invalid", "to 3600"),
    "unknown parameter": ("?wrker=1", GOOD, {}, 422, "parameter_invalid", "deadline, endpoint, model"),
    "parameter twice": ("?worker=1&worker=2", GOOD, {}, 422, "parameter_invalid", "at most one each"),
    "too many parameters": ("?" + "a=1&" * 40, GOOD, {}, 422, "parameter_invalid", "malformed"),
    "long query": ("?model=" + "m" * 2048, GOOD, {}, 422, "parameter_invalid", "longer than 2048 bytes"),
    "not packed": ("", GOOD, {"content-encoding": "gzip"}, 400, "body_wrong_coding", "not gzip"),
    "packed otherwise": ("", GOOD, {"content-encoding": "br"}, 415, "content_coding_unsupported", "gzip"),
    "empty idempotency key": ("", GOOD, {"idempotency-key": ""}, 422, "parameter_invalid", "1 to 255"),
    "MessagePack of another shape": (
        "",
        b"\x81\xa4data\x93\x01\x02\x03",
        {"content-type": "application/msgpack"},
        422,
        "input_wrong_shape",
        "expected",
    ),
    "ragged MessagePack": (
        "",
        b"\x81\xa4data\x92\x01\x91\x02",
        {"content-type": "application/msgpack"},
        422,
        "input_wrong_shape",
        "ragged",
    ),
    "long idempotency key": ("", GOOD, {"idempotency-key": "k" * 256}, 422, "parameter_invalid", "1 to 255"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_a_bad_request_says_what_was_expected_and_reaches_no_queue(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, case: Case
) -> None:
    query, body, headers, status, code, expected = case
    hand_worker(1)
    hand_worker(2)
    served = await serve(max_samples=4, max_body_bytes=1024)
    answer = await served.http.post(f"/predict{query}", content=body, headers=headers)
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert expected in problem["detail"]
    assert nothing_is_queued(client)
    assert (
        f'modelyard_requests_rejected_total{{code="{code}"}} 1.0' in (await served.http.get("/metrics")).text
    )


@pytest.mark.parametrize("contract", [CONTRACT, AnyContract()], ids=["tensor", "any"])
async def test_a_body_of_another_type_is_415_and_names_the_types_for_every_contract(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, contract: Any
) -> None:
    hand_worker(input=contract)
    served = await serve()
    for content_type in ("image/webp", "application/xml"):
        answer = await served.post(b"<a/>", content_type=content_type)
        assert (answer.status_code, answer.json()["code"]) == (415, "media_type_unsupported")
        assert "application/vnd.apache.parquet" in answer.json()["detail"]
    for content_type in ("application/json", "text/plain", "application/vnd.a+json"):
        answer = await served.post(b"<a/>", content_type=content_type)
        assert (answer.status_code, answer.json()["code"]) == (400, "body_not_json")
    assert nothing_is_queued(client)


async def test_a_body_of_too_many_bytes_is_answered_without_reading_the_rest(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(max_body_bytes=1024)
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 512
            yield b" " * 512

    answer = await served.http.post("/predict", content=endless())
    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert sent <= 4 * 512


async def test_a_declared_length_beyond_the_limit_is_answered_without_reading_anything(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(max_body_bytes=1024)

    async def untouched() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    answer = await served.http.post("/predict", content=untouched(), headers={"content-length": "1025"})
    assert answer.status_code == 413


async def test_a_body_that_comes_in_pieces_is_put_together(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(GOOD), 3):
            yield GOOD[start : start + 3]

    assert (await served.http.post("/predict", content=pieces())).status_code == 202


async def test_a_connection_closed_within_the_body_reaches_no_queue(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker()
    served = await serve()
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": b'{"data"', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/predict", "method": "POST", "query_string": b"", "headers": []}
    await served.app(scope, receive, send)
    assert sent[0]["status"] == 422
    assert nothing_is_queued(client)


async def test_no_live_candidate_is_503_with_retry_after(serve: Serve, client: redis.Redis) -> None:
    served = await serve()
    answer = await served.post()
    assert (answer.status_code, answer.json()["code"]) == (503, "no_candidate")
    assert int(answer.headers["retry-after"]) >= 1
    assert nothing_is_queued(client)


@pytest.mark.parametrize("state", ["starting", "draining"])
async def test_a_worker_that_is_not_ready_takes_nothing(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, state: str
) -> None:
    hand_worker(state=state)
    served = await serve()
    for query in ("", "?worker=1"):
        assert (await served.post(query=query)).json()["code"] == "no_candidate"
    assert nothing_is_queued(client)


async def test_more_than_1024_samples_are_too_many_by_default(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker(input=CONTRACT)
    served = await serve()
    assert (await served.post({"data": [[0] * 784] * 1024})).status_code == 202
    assert (await served.post({"data": [[0] * 784] * 1025})).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/predict", 405, "method_not_allowed"),
        ("POST", "/workers", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/results/x?wait=abc", 422, "parameter_invalid"),
        ("GET", "/results/x?wait=61", 422, "parameter_invalid"),
        ("GET", "/results/x?wait=nan", 422, "parameter_invalid"),
        ("GET", "/results/x?wait=-1", 422, "parameter_invalid"),
    ],
)
async def test_the_frameworks_own_errors_are_problem_documents_too(
    serve: Serve, method: str, path: str, status: int, code: str
) -> None:
    served = await serve()
    answer = await served.http.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
