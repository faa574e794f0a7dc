"""A connection of the controller, over a real socket: whatever way a request comes, the answer is the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from app.api_keys import new_key
from controller.http.fast_protocol import KNOWN_HEAD_BYTES, KNOWN_HEADS, Connection, KnownHeads
from controller.main import Controller
from controller.predict import Asked
from controller.routing import Selector
from tests.controller.conftest import HandWorker, Serve, until

HandWorkers = Callable[..., HandWorker]
BODY = b'{"data": [1, 2]}'
LIMIT_BYTES = 2048


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Speaks HTTP byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def answer(self) -> Answer:
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
            body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(head[0].split()[1]), headers, body)

    async def head(self) -> Answer:
        """An answer that has no body, whatever its headers say."""
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:-2])
        return Answer(int(head[0].split()[1]), headers, b"")

    async def closed(self) -> bool:
        async with asyncio.timeout(5):
            return await self._reader.read(1) == b""

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def post(
    body: bytes = BODY, *headers: bytes, query: bytes = b"?wait=5", version: bytes = b"HTTP/1.1"
) -> bytes:
    named = (b"host: localhost", b"content-type: application/json", b"content-length: %d" % len(body))
    return b"\r\n".join((b"POST /predict" + query + b" " + version, *named, *headers, b"", body))


class Site:
    """The application behind a socket, a worker that answers at once, and callers."""

    def __init__(self, app: Controller, worker: HandWorker) -> None:
        config = uvicorn.Config(
            app,
            port=0,
            http=Connection,
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self.app = app
        self.server = uvicorn.Server(config)
        self.serving = asyncio.create_task(self.server.serve())
        self.working = asyncio.create_task(self._work(worker))
        self._callers: list[Caller] = []

    @staticmethod
    async def _work(worker: HandWorker) -> None:
        while True:
            worker.finish(await worker.claimed())

    async def call(self) -> Caller:
        await until(lambda: self.server.started, "the server listens")
        port = self.server.servers[0].sockets[0].getsockname()[1]
        caller = Caller(*await asyncio.open_connection("127.0.0.1", port))
        self._callers.append(caller)
        return caller

    async def close(self) -> None:
        self.working.cancel()
        for caller in self._callers:
            await caller.close()
        self.server.should_exit = True
        await self.serving


@asynccontextmanager
async def open_site(serve: Serve, hand_worker: HandWorkers, **settings: Any) -> AsyncIterator[Site]:
    worker = hand_worker()
    served = await serve(max_body_bytes=LIMIT_BYTES, **settings)
    site = Site(served.app, worker)
    try:
        yield site
    finally:
        await site.close()


@pytest.fixture
async def site(serve: Serve, hand_worker: HandWorkers) -> AsyncIterator[Site]:
    async with open_site(serve, hand_worker) as site:
        yield site


CHUNKED = (
    b"POST /predict?wait=5 HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    b"8\r\n" + BODY[:8] + b"\r\n8\r\n" + BODY[8:] + b"\r\n0\r\n\r\n"
)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([post()], id="whole"),
        pytest.param([post()[:-9], post()[-9:]], id="body in two reads"),
        pytest.param([post()[:20], post()[20:]], id="headers in two reads"),
        pytest.param([CHUNKED], id="chunked"),
        pytest.param([post(BODY, b"idempotency-key: once")], id="idempotent"),
        pytest.param([post(query=b"?wait=5&worker=1")], id="forced"),
    ],
)
async def test_a_prediction_is_answered_however_it_arrives(site: Site, parts: list[bytes]) -> None:
    caller = await site.call()
    for _ in range(2):  # the connection stays usable
        for part in parts:
            await caller.send(part)
            await asyncio.sleep(0.01)  # lets the server read what there is
        answer = await caller.answer()
        assert (answer.status, answer.json["predictions"][0]["class"]) == (200, 7)
        assert answer.headers["content-type"] == "application/json"
        assert "connection" not in answer.headers


async def test_the_short_way_and_the_long_way_answer_alike(site: Site) -> None:
    caller = await site.call()
    answers = []
    for request in (post(), CHUNKED, post(b"[]"), CHUNKED.replace(BODY[:8], b"[" + b" " * 7, 1)):
        await caller.send(request)
        answers.append(await caller.answer())
    good, same_good, bad, same_bad = answers
    assert good.json.keys() == same_good.json.keys()
    assert good.headers.keys() == same_good.headers.keys()
    assert (bad.status, bad.headers["content-type"]) == (422, "application/problem+json")
    assert bad.headers.keys() == same_bad.headers.keys()


async def test_either_way_wants_the_key(serve: Serve, hand_worker: HandWorkers) -> None:
    key, known = new_key("shop", "predict")
    right, wrong = (b"authorization: Bearer " + each.encode() for each in (key, key[:-1]))
    long_way = b"idempotency-key: once"
    async with open_site(serve, hand_worker, api_keys=known.line()) as site:
        caller = await site.call()
        for headers, status in (([], 401), ([wrong], 401), ([right], 200), ([], 401)):
            answers = []
            for way in ([], [long_way]):
                await caller.send(post(BODY, *headers, *way))
                answers.append(await caller.answer())
            assert [answer.status for answer in answers] == [status, status]
            assert answers[0].headers.keys() == answers[1].headers.keys()
            assert ("www-authenticate" in answers[0].headers) == (status == 401)


async def test_either_way_counts_towards_the_rate_limit(serve: Serve, hand_worker: HandWorkers) -> None:
    async with open_site(serve, hand_worker, rate_limit="2/hour") as site:
        caller = await site.call()
        statuses = []
        for request in (post(), CHUNKED, post(), CHUNKED):
            await caller.send(request)
            statuses.append((await caller.answer()).status)
        assert statuses == [200, 200, 429, 429]


async def test_pipelined_requests_are_answered_in_their_order(site: Site) -> None:
    caller = await site.call()
    health = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    await caller.send(post() + health + post(b"[]") + post() + health)
    answers = [await caller.answer() for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 422, 200, 200]
    assert ["predictions" in answer.json for answer in answers] == [True, False, False, True, False]


@pytest.mark.parametrize(
    "request_", [post(BODY, b"connection: close"), post(version=b"HTTP/1.0")], ids=["close", "HTTP/1.0"]
)
async def test_a_connection_that_is_not_to_be_kept_is_closed_after_the_answer(
    site: Site, request_: bytes
) -> None:
    caller = await site.call()
    await caller.send(request_)
    answer = await caller.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await caller.closed()


async def test_a_body_over_the_limit_is_refused_and_the_connection_closed(site: Site) -> None:
    caller = await site.call()
    await caller.send(post(b" " * LIMIT_BYTES + BODY))
    answer = await caller.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert await caller.closed()


async def test_a_caller_who_expects_100_continue_gets_it(site: Site) -> None:
    caller = await site.call()
    head, body = post(BODY, b"expect: 100-continue").split(b"\r\n\r\n")
    await caller.send(head + b"\r\n\r\n")
    assert (await caller.answer()).status == 100
    await caller.send(body)
    assert (await caller.answer()).status == 200


async def test_a_caller_who_leaves_does_no_harm(site: Site) -> None:
    gone = await site.call()
    await gone.send(post())
    await gone.close()
    caller = await site.call()
    await caller.send(post())
    assert (await caller.answer()).status == 200


async def test_what_is_not_a_prediction_goes_the_usual_way(site: Site) -> None:
    caller = await site.call()
    for line, status in [
        (b"GET /predict", 405),
        (b"POST /predictions", 404),
        (b"POST /predict/?wait=5", 200),
        (b"POST /predict?wait=-1", 422),
        (b"POST /predict?wait=5#", 200),
    ]:
        await caller.send(post().replace(b"POST /predict?wait=5", line))
        assert ((await caller.answer()).status, line) == (status, line)


async def test_a_url_that_is_none_is_refused_however_its_request_arrives(site: Site) -> None:
    for parts in ([post(query=b"?a=\x7f")], [post(query=b"?a=\x7f")[:-5]]):
        caller = await site.call()
        await caller.send(*parts)
        assert (await caller.answer()).status in (400, 422)


async def test_a_server_that_shuts_down_answers_who_waits_first(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    site = Site((await serve()).app, worker)
    site.working.cancel()
    caller = await site.call()
    await caller.send(post())
    batch = await worker.claimed()
    site.server.should_exit = True
    await until(lambda: not site.server.servers[0].is_serving(), "the server no longer listens")
    worker.finish(batch)
    answer = await caller.answer()
    assert (answer.status, answer.json["status"]) == (200, "succeeded")
    assert await caller.closed()
    await site.close()


async def test_a_head_that_was_read_before_means_what_it_meant(site: Site) -> None:
    caller = await site.call()
    other = b'{"data": [3, 4]}'
    for body, status in ((BODY, 200), (BODY, 200), (other, 200), (b'{"data": [1, X]}', 400), (BODY, 200)):
        await caller.send(post(body))
        assert (await caller.answer()).status == status
    assert site.app.known_heads.find(post()) is not None


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([post()[:-1], post()[-1:]], id="the last byte late"),
        pytest.param([post()[:40], post()[40:]], id="the head in two reads"),
        pytest.param([post() + post()], id="two at once"),
        pytest.param([post() + post()[:60], post()[60:]], id="and the beginning of the next"),
        pytest.param([post(), post()], id="the next before the answer"),
    ],
)
async def test_a_known_head_in_unusual_reads_is_parsed(site: Site, parts: list[bytes]) -> None:
    caller = await site.call()
    await caller.send(post())
    assert (await caller.answer()).status == 200
    for part in parts:
        await caller.send(part)
        await asyncio.sleep(0.01)  # lets the server read what there is
    for _ in range(b"".join(parts).count(b"POST")):
        answer = await caller.answer()
        assert (answer.status, answer.json["predictions"][0]["class"]) == (200, 7)
    await caller.send(post())
    assert (await caller.answer()).status == 200


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post() + post(), id="two requests"),
        pytest.param(post(b"x" + BODY)[:-1] + post(b"x" + BODY)[-1:] + b"\r\n", id="more than it announces"),
        pytest.param(post(BODY, b"x-long: " + b"x" * KNOWN_HEAD_BYTES), id="a long head"),
        pytest.param(post(b"[]", query=b"?wait=nonsense"), id="a head that is refused"),
        pytest.param(post(BODY, b"idempotency-key: once"), id="an idempotency key"),
        pytest.param(CHUNKED, id="chunks"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", id="another path"),
    ],
)
async def test_only_the_head_of_one_plain_prediction_is_kept(site: Site, request_: bytes) -> None:
    caller = await site.call()
    await caller.send(request_)
    await caller.answer()
    assert not site.app.known_heads._heads


async def test_a_known_head_with_a_key_that_was_taken_away_is_refused(
    serve: Serve, hand_worker: HandWorkers, tmp_path: Path
) -> None:
    key, known = new_key("shop", "predict")
    _, other = new_key("other", "predict")
    file = tmp_path / "keys"
    file.write_text(known.line())
    async with open_site(serve, hand_worker, api_keys_file=file) as site:
        caller = await site.call()
        request = post(BODY, b"authorization: Bearer " + key.encode())
        await caller.send(request)
        assert (await caller.answer()).status == 200
        assert site.app.known_heads.find(request) is not None
        file.write_text(other.line())
        site.app._access.refresh()
        await caller.send(request)
        assert (await caller.answer()).status == 401


def test_heads_that_are_never_seen_again_do_not_pile_up() -> None:
    heads = KnownHeads()
    asked = Asked(Selector(), 5.0, 60.0, b"", b"application/json")
    for number in range(2 * KNOWN_HEADS + 10):
        heads.add(post(BODY, b"x-request: %d" % number), len(BODY), asked, keep_alive=True)
    assert len(heads._heads) <= KNOWN_HEADS
