"""A connection of the controller: whatever way a prediction comes, the answer is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import uvloop

from app.api_keys import new_key
from controller.http.prediction_request import KNOWN_HEAD_BYTES, KNOWN_HEADS
from controller.input.large_bodies import LARGE_BODY_BYTES
from tests.controller.conftest import HandWorker, until
from tests.controller.http.conftest import BODY, LIMIT_BYTES, OpenSite, Site, once, request, work

HandWorkers = Callable[..., HandWorker]
new_event_loop = uvloop.new_event_loop  # as in production


def post(
    body: bytes = BODY, *headers: bytes, query: bytes = b"?wait=5", version: bytes = b"HTTP/1.1"
) -> bytes:
    named = (b"host: localhost", b"content-type: application/json", b"content-length: %d" % len(body))
    return b"\r\n".join((b"POST /predict" + query + b" " + version, *named, *headers, b"", body))


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
    async with site.caller() as caller:
        for _ in range(2):  # the connection stays usable
            for part in parts:
                await caller.send(part)
                await asyncio.sleep(0.01)  # lets the server read what there is
            answer = await caller.answer()
            assert (answer.status, answer.json["predictions"][0]["class"]) == (200, 7)
            assert answer.headers["content-type"] == "application/json"
            assert "connection" not in answer.headers


LARGE = b'{"data": [' + b", ".join([b"[1, 2]"] * 2**15) + b"]}"


async def test_a_large_body_and_what_follows_it_are_read_however_they_arrive(
    open_site: OpenSite, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    site = await open_site(worker, max_body_bytes=2**20, max_samples=2**15)
    assert len(LARGE) >= LARGE_BODY_BYTES
    large = post(LARGE)
    async with site.caller() as caller:
        for parts in ([large + post()], [large[:200], large[200:-1], large[-1:] + post()[:50], post()[50:]]):
            for part in parts:
                await caller.send(part)
                await asyncio.sleep(0.01)
            for n_samples in (2**15, 1):
                batch = await worker.claimed()
                assert [job.n_samples for job in batch.head.jobs] == [n_samples]
                assert batch.data == np.tile(np.array([1, 2], "<f4"), n_samples).tobytes()
                worker.finish(batch)
                assert (await caller.answer()).status == 200
        await caller.send(large[:-4], b"x]]}")
        assert (await caller.answer()).json["code"] == "body_not_json"


async def test_a_path_may_name_a_model_a_version_or_an_alias(
    open_site: OpenSite, hand_worker: HandWorkers
) -> None:
    worker = hand_worker(aliases={"champion": 1}, aliases_read_at_ms=1)
    working = asyncio.create_task(work(worker))
    site = await open_site(worker, root_path="/pre")
    name = worker.record.model_name.encode()
    served = (b"%b", b"%b@champion", b"%b%%40champion", b"%b/versions/1", b"%b/versions/champion")
    refused = {
        b"%b@winner": (404, "model_unknown"),
        b"%b/versions/2": (404, "model_unknown"),
        b"Nobody": (404, "model_unknown"),
        b"%b/versions/0": (422, "parameter_invalid"),
        b"%b/versions/1.5": (422, "parameter_invalid"),
    }

    async def status(path: bytes, *headers: bytes, query: bytes = b"wait=5") -> tuple[int, str]:
        line = b"POST " + path.replace(b"%b", name).replace(b"%%", b"%") + b"/predict?" + query
        await caller.send(request(line, *headers, b"content-length: %d" % len(BODY), body=BODY))
        answer = await caller.answer()
        return answer.status, answer.json.get("code") or answer.json["policy"]

    async with site.caller() as caller:
        for path in served:
            policy = "highest_val_accuracy" if path == b"%b" else "forced"
            for prefix in (b"/models/", b"/pre/models/"):
                assert await status(prefix + path) == (200, policy)
            assert await status(b"/models/" + path, b"idempotency-key: " + path) == (200, policy)
        for path, expected in refused.items():
            assert await status(b"/models/" + path) == expected
        assert await status(b"/models/%b", query=b"wait=5&version=champion") == (200, "forced")
        assert await status(b"/models/%b/versions/1", query=b"model=X") == (422, "parameters_contradict")
        assert await status(b"", query=b"wait=5&version=champion") == (200, "forced")
        assert await status(b"/models/a/b") == (404, "not_found")
    working.cancel()


async def test_the_short_way_and_the_long_way_answer_alike(site: Site) -> None:
    async with site.caller() as caller:
        answers = []
        for request in (post(), CHUNKED, post(b"[]"), CHUNKED.replace(BODY[:8], b"[" + b" " * 7, 1)):
            await caller.send(request)
            answers.append(await caller.answer())
        good, same_good, bad, same_bad = answers
        assert good.json.keys() == same_good.json.keys()
        assert good.headers.keys() == same_good.headers.keys()
        assert (bad.status, bad.headers["content-type"]) == (422, "application/problem+json")
        assert bad.headers.keys() == same_bad.headers.keys()


SCORED = b'{"inputs": [[1, 2]]}'


def score(*headers: bytes, body: bytes = SCORED, path: bytes = b"/invocations") -> bytes:
    return request(b"POST " + path, *headers, b"content-length: %d" % len(body), body=body)


async def test_mlflows_protocol_is_answered_alike_on_either_way(
    open_site: OpenSite, fast_http: bool, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    working = asyncio.create_task(work(worker))
    site = await open_site(worker)
    model = worker.record.model_name.encode()
    text, too_large = b"content-type: text/plain", b" " * LIMIT_BYTES + SCORED
    cases: dict[int, list[bytes]] = {
        200: [
            score(),
            score(b"content-type: application/json; charset=utf-8"),
            score(path=b"/models/%b/invocations" % model),
            score(path=b"/models/%b/versions/1/invocations/" % model),
            score(path=b"/endpoints/%b/invocations" % model),
        ],
        202: [score(b"prefer: respond-async")],
        400: [score(body=b"[]"), score(body=b'{"inputs": [[1, "x"]]}'), score(body=b'{"data": [[1, 2]]}')],
        404: [score(path=b"/models/Nobody/invocations"), score(path=b"/invocations?worker=9")],
        415: [score(text), score(b"content-type: application/json; charset=latin-1")],
        413: [score(body=too_large)],
    }
    long_way = b"content-length", b"expect: 100-continue\r\ncontent-length"
    for status, requests in cases.items():
        for sent in requests:
            async with site.caller() as caller:
                await caller.send(sent)
                short = await caller.answer()
            async with site.caller() as caller:
                await caller.send(sent.replace(*long_way, 1))
                long = await caller.answer()
                long = await caller.answer() if long.status == 100 else long
            assert (short.status, long.status) == (status, status), sent
            assert short.headers["content-type"] == long.headers["content-type"]
            if status == 202:
                # An `Answer` has its headers in lower case.
                assert short.headers["location"] == short.json["result_url"].lower()
                assert short.json.keys() == long.json.keys()
            else:
                assert short.body == long.body
    async with site.caller() as caller:
        await caller.send(score() + post() + score())
        answers = [(await caller.answer()).json for _ in range(3)]
        assert answers[0] == answers[2] == {"predictions": answers[0]["predictions"]}
        assert answers[1]["status"] == "succeeded"
    known_heads = site.served.services.known_heads
    assert fast_http == (known_heads is not None and bool(known_heads.by_data))
    working.cancel()


async def test_either_way_wants_the_key(open_site: OpenSite) -> None:
    key, known = new_key("shop", "predict")
    right, wrong = (b"authorization: Bearer " + each.encode() for each in (key, key[:-1]))
    long_way = b"idempotency-key: once"
    site = await open_site(api_keys=known.line())
    async with site.caller() as caller:
        for headers, status in (([], 401), ([wrong], 401), ([right], 200), ([], 401)):
            answers = []
            for way, cut in (([], 0), ([], -9), ([long_way], 0)):
                sent = post(BODY, *headers, *way)
                for part in (sent[:cut], sent[cut:]):
                    await caller.send(part)
                    await asyncio.sleep(0.01)
                answers.append(await caller.answer())
            assert [answer.status for answer in answers] == [status] * 3
            assert answers[0].headers.keys() == answers[1].headers.keys() == answers[2].headers.keys()
            assert ("www-authenticate" in answers[0].headers) == (status == 401)


async def test_either_way_counts_towards_the_rate_limit(open_site: OpenSite) -> None:
    site = await open_site(rate_limit="2/hour")
    async with site.caller() as caller:
        statuses = []
        for request in (post(), CHUNKED, post(), CHUNKED):
            await caller.send(request)
            statuses.append((await caller.answer()).status)
        assert statuses == [200, 200, 429, 429]


async def test_pipelined_requests_are_answered_in_their_order(site: Site) -> None:
    async with site.caller() as caller:
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
    async with site.caller() as caller:
        await caller.send(request_)
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.closed()


async def test_a_body_over_the_limit_is_refused_and_the_connection_closed(site: Site) -> None:
    async with site.caller() as caller:
        await caller.send(post(b" " * LIMIT_BYTES + BODY))
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert await caller.closed()


async def test_a_caller_who_expects_100_continue_gets_it(site: Site) -> None:
    async with site.caller() as caller:
        head, body = post(BODY, b"expect: 100-continue").split(b"\r\n\r\n")
        await caller.send(head + b"\r\n\r\n")
        assert (await caller.answer()).status == 100
        await caller.send(body)
        assert (await caller.answer()).status == 200


async def test_a_caller_who_leaves_does_no_harm(site: Site) -> None:
    for sent in (post(), post()[:-9]):
        async with site.caller() as gone:
            await gone.send(sent)
            await asyncio.sleep(0.01)
    async with site.caller() as caller:
        await caller.send(post())
        assert (await caller.answer()).status == 200


async def test_what_is_not_a_prediction_goes_the_usual_way(site: Site) -> None:
    async with site.caller() as caller:
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
        async with site.caller() as caller:
            await caller.send(*parts)
            answer = await caller.answer()
            assert (answer.status, answer.json["code"]) == (400, "request_malformed")


async def test_a_server_that_shuts_down_answers_who_waits_first(
    open_site: OpenSite, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    site = await open_site(worker)
    async with site.caller() as caller:
        await caller.send(post())
        batch = await worker.claimed()
        site.server.should_exit = True
        await until(lambda: not site.server.servers[0].is_serving(), "the server no longer listens")
        worker.finish(batch)
        answer = await caller.answer()
        assert (answer.status, answer.json["status"]) == (200, "succeeded")
        assert await caller.closed()


async def test_a_server_that_shuts_down_answers_a_request_whose_body_still_arrives(site: Site) -> None:
    async with site.caller() as caller:
        await caller.send(post()[:-9])
        await until(lambda: site.connection() is not None, "it is connected")
        await asyncio.sleep(0.1)
        site.served.app.drain()
        await caller.send(post()[-9:])
        answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await caller.closed()


async def test_a_head_that_was_read_before_means_what_it_meant(site: Site, fast_http: bool) -> None:
    async with site.caller() as caller:
        other = b'{"data": [3, 4]}'
        for body, status in ((BODY, 200), (BODY, 200), (other, 200), (b'{"data": [1, X]}', 400), (BODY, 200)):
            await caller.send(post(body))
            assert (await caller.answer()).status == status
    known_heads = site.served.services.known_heads
    assert fast_http == (known_heads is not None and len(known_heads.by_data) == 1)


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
    async with site.caller() as caller:
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


@once
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(post(BODY, b"x-long: " + b"x" * KNOWN_HEAD_BYTES), id="a long head"),
        pytest.param(post(b"[]", query=b"?wait=nonsense"), id="a head that is refused"),
        pytest.param(post(BODY, b"authorization: Bearer none"), id="a key that is none"),
        pytest.param(post(BODY, b"idempotency-key: once"), id="an idempotency key"),
        pytest.param(CHUNKED, id="chunks"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", id="another path"),
    ],
)
async def test_only_the_head_of_a_plain_prediction_that_may_enter_is_kept(
    open_site: OpenSite, request_: bytes
) -> None:
    has_key = b"Bearer" in request_
    site = await open_site(**({"api_keys": new_key("shop", "predict")[1].line()} if has_key else {}))
    async with site.caller() as caller:
        await caller.send(request_)
        await caller.answer()
    known_heads = site.served.services.known_heads
    assert known_heads is not None
    assert not known_heads.by_data


@once
async def test_heads_that_are_never_seen_again_do_not_pile_up(site: Site) -> None:
    async with site.caller() as caller:
        heads = range(KNOWN_HEADS + 10)
        await caller.send(b"".join(post(b"[]", b"x-request: %d" % number) for number in heads))
        assert {(await caller.answer()).status for _ in heads} == {422}
    known_heads = site.served.services.known_heads
    assert known_heads is not None
    assert 0 < len(known_heads.by_data) <= KNOWN_HEADS


async def test_a_known_head_with_a_key_that_was_taken_away_is_refused(
    open_site: OpenSite, tmp_path: Path
) -> None:
    key, known = new_key("shop", "predict")
    _, other = new_key("other", "predict")
    file = tmp_path / "keys"
    file.write_text(known.line())
    site = await open_site(api_keys_file=file)
    async with site.caller() as caller:
        request = post(BODY, b"authorization: Bearer " + key.encode())
        await caller.send(request)
        assert (await caller.answer()).status == 200
        file.write_text(other.line())
        for _ in range(2):  # an edit counts once two looks have seen it
            site.served.services.access.refresh()
        await caller.send(request)
        assert (await caller.answer()).status == 401
