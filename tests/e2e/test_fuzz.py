"""A real controller with real workers under requests that nobody should send: `make fuzz` sends many, `make test` some.

Nothing may answer 5xx (but 503), show its inside, reach a queue, or make the controller grow.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import redis
import schemathesis
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from app.redis import keys
from modelyard import Client
from tests.conftest import RedisServer, WaitUntil
from tests.controller.conftest import HandWorker
from tests.e2e import body_fuzz, fuzz
from tests.e2e.conftest import MODEL, Digits, Pool
from tests.e2e.fuzz import Judge, send_many
from tests.pool_samples import record

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "700"))
ROUNDS = 10 if REQUESTS >= 10_000 else 2
GROWTH_MIB = 8.0  # what allocators keep of the largest bodies; a leak of 400 bytes a request in the long form
pytestmark = [
    pytest.mark.timeout(max(400, REQUESTS // 5)),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestWarning"),
]


def fuzz_by_document(url: str, judge: Judge, count: int, round_number: int) -> None:
    """What the OpenAPI document allows, and what it forbids."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    results: Iterable[Any] = schema.get_all_operations()
    operations = [result.ok() for result in results]
    strategies = [
        operation.as_strategy(generation_mode=mode) for operation in operations for mode in GenerationMode
    ]
    with httpx.Client(base_url=url, timeout=70) as http:

        @send_many(count, round_number, case=st.one_of(strategies))
        def send(case: Any) -> None:
            arguments = case.as_transport_kwargs(base_url=url)
            try:
                request = httpx.Request(
                    arguments["method"],
                    arguments["url"],
                    params=arguments.get("params"),
                    headers={str(k): str(v) for k, v in (arguments.get("headers") or {}).items()},
                    content=arguments.get("data") if isinstance(arguments.get("data"), bytes | str) else None,
                    json=arguments.get("json"),
                )
                answer = http.send(request)
            except (httpx.InvalidURL, httpx.ProtocolError, UnicodeEncodeError, TypeError, ValueError):
                return  # no client can send it; raw bytes are the third kind
            judge.take(answer.status_code, answer.content, arguments)


def fuzz_bodies(url: str, judge: Judge, count: int, round_number: int) -> None:
    """Bodies and headers by hand."""
    bodies = fuzz.JSON_BODIES | st.just(fuzz.BOMB)
    with httpx.Client(base_url=url, timeout=30) as http:

        @send_many(count, round_number, body=bodies, query=fuzz.QUERIES, headers=fuzz.HEADERS)
        def send(body: bytes, query: str, headers: dict[str, str]) -> None:
            raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
            try:
                answer = http.post(f"/predict{query}", content=body, headers=raw)
            except (httpx.LocalProtocolError, httpx.RemoteProtocolError):
                judge.statuses[0] += 1  # a header that cannot be sent, or closed after a refusal
                return
            judge.take(answer.status_code, answer.content, (body[:200], query, headers))


def fuzz_sockets(url: str, judge: Judge, count: int, round_number: int) -> None:
    """Bytes that are hardly HTTP, in pieces."""
    port = urlsplit(url).port
    assert port

    @send_many(count, round_number, sent=fuzz.RAW, pieces=st.sampled_from([1, 1, 1, 2, 5]))
    def send(sent: bytes, pieces: int) -> None:
        judge.take_raw(fuzz.exchange(port, sent, pieces), sent)


def fuzz_digits(url: str, judge: Judge, count: int, round_number: int) -> None:
    """Bodies that are right but for a number or two: what is accepted must be right."""
    with httpx.Client(base_url=url, timeout=30) as http:

        @send_many(count, round_number, body=fuzz.DIGITS)
        def send(body: bytes) -> None:
            answer = http.post(f"/predict?model={MODEL}", content=body)
            judge.take(answer.status_code, answer.content, body)
            assert (answer.status_code == 202) == fuzz.is_right(body), (answer.content, body)


# Drawing a request from the document takes ten times as long as drawing one by hand.
SHARES = {fuzz_by_document: 0.12, fuzz_bodies: 0.38, fuzz_digits: 0.06, fuzz_sockets: 0.44}


def batches(client: redis.Redis) -> set[str]:
    """Ids of all batches that Redis knows of."""
    prefix = keys.batch("")
    return {key.decode().removeprefix(prefix) for key in client.scan_iter(f"{prefix}*", count=1000)}


def test_no_request_breaks_the_controller_shows_its_inside_or_reaches_a_queue_unjudged(
    served: tuple[Pool, str, Client], digits: Digits, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, url, client = served
    controller = pool.serving(url)
    judge, started_s = Judge(), time.monotonic()

    def tell(line: str) -> None:
        if ROUNDS > 2:
            with capsys.disabled():
                print(f"\n{line}", end="", flush=True)

    with httpx.Client(base_url=url, timeout=30) as http:
        for _ in range(8):  # the controller keeps the memory of the largest bodies for the next ones
            refused = http.post("/predict", content=fuzz.BOMB, headers={"content-encoding": "gzip"})
            assert refused.status_code == 413
    held_mib = []
    with redis.Redis.from_url(pool.redis_url) as ledger:
        before = batches(ledger)
        for round_number in range(ROUNDS):
            for kind, share in SHARES.items():
                kind(url, judge, int(share * REQUESTS / ROUNDS), round_number)
            held_mib.append(fuzz.settled_rss_mib(controller.pid))
            tell(f"{judge.requests} requests, controller {held_mib[-1]:.1f} MiB")
        unseen = batches(ledger) - before - judge.batches
    grown_mib = held_mib[-1] - held_mib[0]  # the first round warms allocators and caches up
    assert unseen == set()
    assert grown_mib < GROWTH_MIB
    assert judge.requests >= REQUESTS * 0.85
    assert controller.poll() is None
    right = sum(
        client.predict(digits.images[i : i + 1]).predictions[0].predicted == digits.labels[i]
        for i in range(20)
    )
    assert right >= 18
    tell(
        f"{judge.requests} requests in {time.monotonic() - started_s:.0f} s, "
        f"{len(judge.batches)} batches accepted, controller {grown_mib:+.1f} MiB; "
        + ", ".join(f"{status or 'closed'}: {n}" for status, n in sorted(judge.statuses.items()))
    )


BODIES = REQUESTS * 2 // 5
SEED = int(os.environ.get("FUZZ_SEED", "0"))
CHUNK = 50  # requests between two looks at the queues
READER_MIB = 600.0


def readers_of(pid: int) -> list[int]:
    """Processes in which a controller reads bodies."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def test_no_body_of_any_format_breaks_the_controller_or_reaches_a_queue_unjudged(
    redis_server: RedisServer,
    free_port: Callable[[], int],
    wait_until: WaitUntil,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pool = Pool(tmp_path, redis_server.url, free_port, wait_until)
    judge, by_format, held_mib = Judge(), Counter[tuple[str, str]](), []
    try:
        with redis.Redis.from_url(redis_server.url) as ledger, httpx.Client(timeout=60) as http:
            workers = [
                HandWorker(ledger, record(number, model_name=name, input=contract))
                for number, (name, contract) in enumerate(body_fuzz.CONTRACTS.items(), 1)
            ]
            for worker in workers:
                worker.start()
            url = pool.controller()
            pool.wait_for_workers(url, len(workers))
            controller = pool.serving(url)
            rng, started_s = random.Random(SEED), time.monotonic()
            for number in range(BODIES):
                name, sent = body_fuzz.request(rng)
                answer = http.post(f"{url}{sent.path}", content=sent.body, headers=sent.headers())
                judge.take(answer.status_code, answer.content, (number, sent))
                assert answer.status_code < 500, (number, sent, answer.content)
                by_format[name, "accepted" if answer.status_code == 202 else "refused"] += 1
                if number % CHUNK == CHUNK - 1:
                    unseen = batches(ledger) - judge.batches
                    assert unseen == set(), unseen
                    for worker in workers:
                        worker.start()  # its record lives for a while only
                        while batch := worker.claim():
                            worker.finish(batch)
                    held_mib.append(fuzz.rss_mib(controller.pid))
            grown_mib = fuzz.settled_rss_mib(controller.pid) - held_mib[len(held_mib) // 2]
            assert controller.poll() is None
            assert grown_mib < GROWTH_MIB
            mapped = Path(f"/proc/{controller.pid}/maps").read_bytes()
            assert b"libarrow" not in mapped
            assert b"_imaging" not in mapped
            assert all(fuzz.rss_mib(pid) < READER_MIB for pid in readers_of(controller.pid))
            right = http.post(f"{url}/models/Pair/predict", json={"data": [1, 2]})
            assert right.status_code == 202
            assert judge.statuses[429] < BODIES / 50
            assert min(by_format[name, "accepted"] for name in body_fuzz.FORMATS) > 0
    finally:
        pool.close()
    if ROUNDS > 2:
        with capsys.disabled():
            print(
                f"\n{BODIES} bodies in {time.monotonic() - started_s:.0f} s; {grown_mib:+.1f} MiB; {by_format}"
            )
