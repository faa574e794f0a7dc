"""HTTP as proxies, browsers and other languages speak it, over real sockets to the server of `modelyard serve`."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import socket
import subprocess
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop

from controller.http.connection import Connection
from tests.controller.conftest import until
from tests.controller.http.conftest import (
    BODY,
    LIMIT_BYTES,
    SMALL_BUFFER_BYTES,
    OpenSite,
    Site,
    once,
    post,
    request,
)

MAX_UNSENT_BYTES = 2**20
HEALTH = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"

new_event_loop = uvloop.new_event_loop  # as in production


H2C = (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQCAAAAAAIAAAAA")
WEBSOCKET = (b"connection: keep-alive, Upgrade", b"upgrade: websocket", b"sec-websocket-version: 13")
CHUNKS = b"8\r\n" + BODY[:8] + b"\r\n8\r\n" + BODY[8:] + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET, (b"upgrade: foo/2", b"connection: upgrade")])
async def test_an_offer_to_upgrade_is_ignored_however_the_request_arrives(
    site: Site, offer: tuple[bytes, ...]
) -> None:
    chunked = request(b"POST /predict?wait=5", *offer, b"transfer-encoding: chunked", body=CHUNKS)
    async with site.caller() as caller:
        for sent in (post(*offer), chunked):
            head_bytes = sent.index(b"\r\n\r\n") + 4
            for parts in ([sent], [sent[:head_bytes], sent[head_bytes:]], [bytes([each]) for each in sent]):
                for part in parts:
                    await caller.send(part)
                    await asyncio.sleep(0)
                await caller.send(HEALTH)
                answers = [await caller.answer(), await caller.answer()]
                assert [answer.status for answer in answers] == [200, 200]
                assert [sorted(answer.json)[-1] for answer in answers] == ["worker_id", "status"]


async def test_the_body_of_a_request_that_offers_to_upgrade_is_no_second_request(site: Site) -> None:
    smuggled = post(body=b"[]")
    async with site.caller() as caller:
        sent = post(*H2C, body=smuggled)
        await caller.send(sent[: -len(smuggled)])
        await asyncio.sleep(0.05)  # lets the server read the head alone
        await caller.send(smuggled, HEALTH)
        assert [(await caller.answer()).status for _ in range(2)] == [400, 200]


@once
async def test_bytes_behind_connect_are_not_answered(site: Site) -> None:
    async with site.caller() as caller:
        await caller.send(b"CONNECT x:443 HTTP/1.1\r\nhost: localhost\r\n\r\n" + HEALTH)
        assert (await caller.answer()).status == 400
        assert await caller.closed()


@once
async def test_trailers_are_no_headers_of_the_request(site: Site) -> None:
    async with site.caller() as caller:
        trailers = b"idempotency-key: a\r\ncontent-encoding: br\r\n"
        chunks = CHUNKS[:-2] + trailers + b"\r\n"
        await caller.send(
            request(b"POST /predict?wait=5", b"transfer-encoding: chunked", body=chunks) + HEALTH
        )
        assert [(await caller.answer()).status for _ in range(2)] == [200, 200]
        endless = CHUNKS[:-2] + b"x-long: " + b"a" * 100_000
        await caller.send(request(b"POST /predict?wait=5", b"transfer-encoding: chunked", body=endless))
        assert (await caller.answer()).status == 431


@once
async def test_an_answer_given_before_the_body_was_asked_for_is_the_last_one(open_site: OpenSite) -> None:
    """A caller who expects 100-continue need not send the body then, so nothing after the head can be told apart."""
    site = await open_site(api_keys="shop predict sha256:" + "0" * 64)
    for target in (b"POST /predict", b"POST /quarantine/x/resend"):
        async with site.caller() as caller:
            await caller.send(request(target, b"expect: 100-continue", b"content-length: 9"))
            answer = await caller.answer()
            assert (answer.status, answer.headers["connection"]) == (401, "close")
            assert await caller.closed()


async def test_a_caller_of_http_1_0_is_never_told_to_continue(site: Site) -> None:
    async with site.caller() as caller:
        sent = post(b"expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
        await caller.send(sent)
        assert (await caller.answer()).status == 200


REFUSED = post(body=b"[]", query=b"")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(REFUSED, 422, id="predictions"),
        pytest.param(request(b"GET /workers"), 200, id="reads"),
        pytest.param(request(b"GET /metrics"), 200, id="large answers"),
        pytest.param(
            request(b"GET /healthz", b"x-pad: " + b"a" * 60), 200, id="more than a head may have in one read"
        ),
    ],
)
@once
async def test_requests_whose_answers_are_not_read_wait_and_are_all_answered_in_the_end(
    site: Site, sent: bytes, status: int
) -> None:
    n = 1000 if b"healthz" in sent else 300
    async with site.caller(limit=SMALL_BUFFER_BYTES) as caller:
        await caller.send(sent)
        await caller.answer()
        connection = site.connection()
        small(connection)
        sending = asyncio.create_task(caller.send(sent * n))
        await until(lambda: not connection.transport.is_reading(), "reading is paused", 20)
        unsent_bytes = connection.transport.get_write_buffer_size()
        assert unsent_bytes < MAX_UNSENT_BYTES
        assert {(await caller.answer()).status for _ in range(n)} == {status}
        await sending
        await caller.send(HEALTH)
        assert (await caller.answer()).status == 200


async def test_a_caller_who_reads_no_answer_gets_no_more_requests_read(site: Site) -> None:
    """One after the other, each in a read of its own with a head that is known."""
    async with site.caller(limit=SMALL_BUFFER_BYTES) as caller:
        await caller.send(REFUSED)
        await caller.answer()
        connection = site.connection()
        small(connection)
        while connection.transport.is_reading():
            await caller.send(REFUSED)
            await asyncio.sleep(0.001)  # the pace of a caller who sends the next one after the answer
            assert connection.transport.get_write_buffer_size() < MAX_UNSENT_BYTES
        assert not connection.transport.is_closing()


async def test_a_caller_who_never_reads_an_answer_is_given_up(open_site: OpenSite) -> None:
    site = await open_site(request_timeout_s=0.5)
    async with site.caller(limit=1024) as caller:
        await caller.send(HEALTH)
        await caller.answer()
        small(site.connection())
        with contextlib.suppress(OSError):
            await caller.send(REFUSED * 2000)
        await until(lambda: not site.server.connections.open, "the connection is closed", 20)


def small(connection: Connection) -> None:
    """Have the kernel take little of what is sent: what the controller keeps is what is tested."""
    connection.transport.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER_BYTES
    )


async def test_nonsense_behind_a_request_is_answered_after_it(site: Site) -> None:
    async with site.caller() as caller:
        await caller.send(post() + HEALTH + b"NONSENSE\r\n\r\n")
        answers = [await caller.answer() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 400]
        assert json.loads(answers[0].body)["predictions"]
        assert await caller.closed()


KEYS = "shop predict sha256:" + "0" * 64
LARGE = b" " * 5_000_000
UNREAD: dict[str, tuple[int, str, dict[str, Any], dict[str, str], Any]] = {
    "a body over the limit": (413, "/predict", {}, {}, LARGE),
    "chunks over the limit": (413, "/predict", {}, {}, [LARGE] * 3),
    "chunks without a key": (401, "/predict", {"api_keys": KEYS}, {}, [LARGE] * 3),
    "a body without a key": (401, "/results/x", {"api_keys": KEYS}, {}, LARGE),
    "a head that is too large": (431, "/predict", {}, {"x-large": "a" * 1_000_000}, LARGE),
    "a length that is none": (400, "/predict", {}, {"content-length": "x"}, LARGE),
}


@once
@pytest.mark.parametrize("case", UNREAD)
async def test_a_caller_who_sends_all_before_reading_sees_why_it_was_refused(
    open_site: OpenSite, case: str
) -> None:
    status, path, settings, headers, body = UNREAD[case]
    site = await open_site(**settings)
    for _ in range(10):
        assert await asyncio.to_thread(status_of, site.address, path, headers, body) == status


def status_of(address: tuple[str, int], path: str, headers: dict[str, str], body: Any) -> int:
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("POST", path, body, headers)
    answer = connection.getresponse()
    assert json.loads(answer.read())["status"] == answer.status
    connection.close()
    return answer.status


async def test_a_caller_who_never_ends_a_refused_request_is_cut_off(open_site: OpenSite) -> None:
    site = await open_site(request_timeout_s=0.5)
    async with site.caller() as caller:
        await caller.send(request(b"POST /predict", b"content-length: 1000000", body=b"{"))
        assert (await caller.answer()).status == 413
        await until(lambda: not site.server.connections.open, "the connection is closed", 20)


@pytest.fixture
async def nginx(
    tmp_path: Path, free_port: Callable[[], int], system_tool: Callable[[str, str], str]
) -> AsyncIterator[Callable[[Site], Awaitable[tuple[str, int]]]]:
    """`await nginx(site)` is the address of an nginx in front of a site."""
    with contextlib.ExitStack() as stack:

        async def start(site: Site) -> tuple[str, int]:
            program, port = system_tool("nginx", "nginx"), free_port()
            upstream = f"http://127.0.0.1:{site.address[1]}"
            proxy = stack.enter_context(proxying(program, tmp_path, port, upstream))
            await until(lambda: can_connect(proxy), "nginx listens", 20)
            return proxy

        yield start


Nginx = Callable[[Site], Awaitable[tuple[str, int]]]


@once
async def test_nginx_passes_on_why_a_request_was_refused(open_site: OpenSite, nginx: Nginx) -> None:
    proxy = await nginx(await open_site())
    for _ in range(3):
        assert await asyncio.to_thread(status_of, proxy, "/predict", {}, LARGE) == 413


@once
@pytest.mark.parametrize("way", ["/yard", "/yard/kept"], ids=["stripped by the proxy", "kept by the proxy"])
async def test_every_reference_leads_through_the_proxy(open_site: OpenSite, nginx: Nginx, way: str) -> None:
    site = await open_site(root_path=way)
    host, port = await nginx(site)
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=30) as browser:
        # The short way, the long, a repeat.
        for headers in ({}, {"idempotency-key": "a"}, {"idempotency-key": "a"}):
            for path in (f"{way}/predict", f"{way}/predict/"):
                accepted = await browser.post(path, json={"data": [1, 2]}, headers=headers)
                assert accepted.status_code == 202
                told = accepted.json()["result_url"]
                assert told == accepted.headers["location"] == f"{way}/results/{accepted.json()['id']}"
                read = await browser.get(f"{told}?wait=5")
                assert (read.status_code, read.json()["result_url"]) == (200, told)
        page = await browser.get(f"{way}/docs/")
        for reference in (f"{way}/openapi.json", f"{way}/static-offline-docs/swagger-ui-bundle.js"):
            assert reference in page.text
            assert (await browser.get(reference)).status_code == 200
        document = (await browser.get(f"{way}/openapi.json")).json()
        assert document["servers"] == [{"url": way}]


@once
async def test_a_trailing_slash_leads_to_the_same_resource_and_never_elsewhere(site: Site) -> None:
    async with site.caller() as caller:
        for path, status in (
            (b"/healthz/", 200),
            (b"/workers/", 200),
            (b"/results/x/", 404),
            (b"/none/", 404),
        ):
            await caller.send(request(b"GET " + path))
            answer = await caller.answer()
            assert (answer.status, "location" in answer.headers) == (status, False)


@once
async def test_head_is_answered_like_get_without_the_body(site: Site) -> None:
    async with site.caller() as caller:
        for path in (b"/healthz", b"/readyz", b"/workers", b"/docs", b"/openapi.json", b"/none"):
            await caller.send(request(b"GET " + path))
            got = await caller.answer()
            await caller.send(request(b"HEAD " + path))
            head = await caller.head()
            assert (head.status, head.headers.keys()) == (got.status, got.headers.keys())
            if path not in (b"/workers",):  # which tells how old things are
                assert head.headers["content-length"] == got.headers["content-length"]
        await caller.send(request(b"HEAD /predict"))
        assert (await caller.head()).status == 405


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(b"GET /healthz HTTP/1.1\r\n\r\n", 400, id="no host"),
        pytest.param(request(b"GET /healthz", b"Host: localhost"), 400, id="two hosts"),
        pytest.param(post(b"host: other"), 400, id="two hosts of a prediction"),
        pytest.param(b"GET /healthz HTTP/1.0\r\n\r\n", 200, id="no host in HTTP/1.0"),
        pytest.param(
            request(b"POST /predict", b"transfer-encoding: gzip, chunked", body=CHUNKS),
            400,
            id="other codings",
        ),
    ],
)
async def test_a_request_that_proxies_may_read_differently_is_refused(
    site: Site, sent: bytes, status: int
) -> None:
    async with site.caller() as caller:
        await caller.send(sent)
        assert (await caller.answer()).status == status
        assert await caller.closed()


PACKED = {
    "gzip": gzip.compress(BODY),
    "x-gzip": gzip.compress(BODY[:8]) + gzip.compress(BODY[8:]),
    "GZIP": gzip.compress(BODY),
    "deflate": zlib.compress(BODY),
    "identity": BODY,
}


async def test_packed_bodies_are_unpacked_within_the_limit(site: Site) -> None:
    raw = zlib.compressobj(wbits=-15)
    bomb = gzip.compress(b" " * 50_000_000)
    cases: list[tuple[str, bytes, int]] = [(coding, body, 200) for coding, body in PACKED.items()]
    cases += [("deflate", raw.compress(BODY) + raw.flush(), 200)]
    cases += [("gzip", bomb, 413), ("gzip", gzip.compress(b" " * LIMIT_BYTES + BODY), 413)]
    cases += [("gzip", BODY, 400), ("gzip", PACKED["gzip"][:-9], 400), ("gzip", PACKED["gzip"] + b"x", 400)]
    cases += [("gzip", gzip.compress(b"") * 2000 + PACKED["gzip"], 400)]
    cases += [("br", BODY, 415), ("gzip, gzip", BODY, 415), ("gzip", b"", 400), ("deflate", b"", 400)]
    for coding, body, status in cases:
        async with site.caller() as caller:
            sent = post(b"content-encoding: " + coding.encode(), body=body)
            await caller.send(sent)
            answer = await caller.answer()
            assert (coding, answer.status) == (coding, status)
            if status == 415:
                assert answer.headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/pdf", b"%PDF-1.7", 415),
        ("image/gif", b"GIF89a", 415),
        ("image/png", b"\x89PNG\r\n", 422),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\n1\r\n--x--", 422),
        ("text/csv", b"1,2", 415),
        ("text/csv", BODY, 200),
        ("application/x-www-form-urlencoded", b"data=1", 400),
        ("application/vnd.x+json", b"{", 400),
    ],
)
@once
async def test_a_type_that_is_not_read_is_refused_with_those_that_are(
    site: Site, content_type: str, body: bytes, status: int
) -> None:
    async with site.caller() as caller:
        for way in ((), (b"idempotency-key: once",)):
            await caller.send(post(b"content-type: " + content_type.encode(), *way, body=body))
            answer = await caller.answer()
            assert answer.status == status
            if status == 415:
                assert "application/json" in answer.json["detail"]
                assert answer.headers["accept-post"].startswith("application/json, ")


HERE, PAGE = b"host: localhost", b"origin: https://app.example.com"
# Headers instead of `Host: localhost`, a path, and the status by settings: none, allowed ones, with keys (none sent).
VISITORS: list[tuple[tuple[bytes, ...], bytes, tuple[int, int, int]]] = [
    ((HERE,), b"GET /workers", (200, 200, 401)),
    ((b"host: LOCALHOST.:9000",), b"GET /workers", (200, 200, 401)),
    ((b"host: 127.0.0.1:1",), b"GET /workers", (200, 200, 401)),
    ((b"host: [::1]:9000",), b"GET /workers", (200, 200, 401)),
    ((b"host: controller:9000",), b"GET /metrics", (421, 200, 401)),
    ((b"host: 10.0.0.7",), b"GET /workers", (200, 200, 401)),
    ((b"host: yard.example.com:80",), b"GET /workers", (421, 200, 401)),
    ((b"host: a.internal",), b"GET /workers", (421, 200, 401)),
    ((b"host: evil.example",), b"GET /workers", (421, 421, 401)),
    ((b"host: localhost.evil.example",), b"GET /docs", (421, 421, 200)),
    ((b"host: 127.0.0.1.evil.example",), b"POST /predict", (421, 421, 401)),
    *(
        ((b"host: " + malformed,), b"GET /workers", (421, 421, 401))
        for malformed in (
            b"",
            b"[::1",
            b"[::1].evil.example",
            b"[localhost]",
            b"localhost:1@evil.example",
            b"localhost:x",
        )
    ),
    ((b"host: evil.example",), b"GET /healthz", (200, 200, 200)),
    ((b"host: evil.example",), b"GET /readyz", (200, 200, 200)),
    ((HERE, PAGE), b"POST /predict", (403, 202, 401)),
    ((HERE, b"origin: null"), b"POST /predict", (403, 403, 401)),
    ((HERE, b"origin: http://localhost:3000"), b"DELETE /results/x", (403, 403, 401)),
    ((HERE, b"origin: http://localhost"), b"POST /predict", (202, 202, 401)),
    ((HERE,), b"POST /predict", (202, 202, 401)),
]


async def test_web_pages_and_names_of_strangers_are_refused_where_there_are_no_keys(
    open_site: OpenSite,
) -> None:
    allowed = {
        "allowed_hosts": "controller, yard.example.com, *.internal, ::1",  # an address needs no entry
        "cors_origins": "https://app.example.com",
    }
    all_settings: list[dict[str, Any]] = [{}, allowed, {**allowed, "api_keys": KEYS}]
    for number, settings in enumerate(all_settings):
        site = await open_site(**settings)
        async with site.caller() as caller:
            for headers, line, statuses in VISITORS:
                for _ in range(2):  # also with a head that is known
                    body = BODY if line.startswith(b"POST") else b""
                    length = b"content-length: %d" % len(body)
                    await caller.send(b"\r\n".join((line + b" HTTP/1.1", *headers, length, b"", body)))
                    answer = await caller.answer()
                    assert (number, headers, answer.status) == (number, headers, statuses[number])
                    setting = {421: "MODELYARD_ALLOWED_HOSTS", 403: "MODELYARD_CORS_ORIGINS"}.get(
                        answer.status
                    )
                    assert setting is None or setting in answer.json["detail"]
                    is_known_page = PAGE in headers and bool(number)
                    assert ("access-control-allow-origin" in answer.headers) == is_known_page


@once
async def test_a_page_that_is_allowed_may_ask_before_it_sends(open_site: OpenSite) -> None:
    asking = (
        b"access-control-request-method: POST",
        b"access-control-request-headers: content-type,authorization",
    )
    site = await open_site(cors_origins="https://app.example.com", api_keys=KEYS)
    async with site.caller() as caller:
        await caller.send(request(b"OPTIONS /predict", PAGE, *asking))
        answer = await caller.answer()
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (
            200,
            "https://app.example.com",
        )
        assert "post" in answer.headers["access-control-allow-methods"]
        await caller.send(request(b"OPTIONS /predict", b"origin: https://evil.example", *asking))
        assert "access-control-allow-origin" not in (await caller.answer()).headers


@contextlib.contextmanager
def proxying(nginx: str, folder: Path, port: int, upstream: str) -> Iterator[tuple[str, int]]:
    """nginx in front of a controller: `/yard/` with the prefix stripped, `/yard/kept/` and the rest as they are."""
    config = folder / "nginx.conf"
    config.write_text(f"""
        daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
        events {{ worker_connections 64; }}
        http {{
            access_log off; client_max_body_size 0; client_body_temp_path {folder}/body;
            proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
            scgi_temp_path {folder}/scgi; proxy_http_version 1.1; proxy_set_header Host $http_host;
            server {{
                listen 127.0.0.1:{port};
                location / {{ proxy_pass {upstream}; proxy_request_buffering off; }}
                location /yard/ {{ proxy_pass {upstream}/; }}
                location /yard/kept/ {{ proxy_pass {upstream}; }}
            }}
        }}
    """)
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield "127.0.0.1", port
    finally:
        process.terminate()
        process.wait(10)


def can_connect(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False
