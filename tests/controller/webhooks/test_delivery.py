"""Webhooks: a job with a `callback_url` is delivered to a real receiver, at least once, by whichever controller."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import trustme

from app.redis import keys
from app.server_errors import ConfigurationError, WebhookNotAllowedError
from app.settings import ControllerSettings
from controller.main import create_app
from controller.webhooks.delivery import MOST_PER_HOST
from controller.webhooks.destinations import check_url, may_connect
from modelyard import verify_webhook
from tests.controller.conftest import (
    HandWorker,
    OwnRedis,
    Serve,
    Served,
    nothing_is_queued,
    serving,
    settings_for,
    until,
)
from tests.pool_samples import RedisServer, record

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
ON: dict[str, Any] = {
    "webhook_hosts": "127.0.0.1, localhost, *.example.com",
    "webhook_secret": SECRET,
    "webhook_plain_http": True,
    "webhook_private_networks": True,
    "webhook_backoff_s": 0.05,
    "webhook_timeout_s": 0.5,
}
HandWorkers = Callable[..., HandWorker]


@dataclass
class Receiver:
    """A server that answers webhooks with these statuses in turn, and then with 200; None is no answer."""

    url: str = ""
    statuses: list[int | None] = field(default_factory=list)
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def jobs(self) -> list[str]:
        """Ids of the jobs that it heard of; each must be signed."""
        return [verify_webhook(SECRET, headers, body).id for headers, body in list(self.heard)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@contextmanager
def receiving(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver, of HTTPS if a context is given."""
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.heard.append((dict(self.headers.items()), body))
            status = made.statuses.pop(0) if made.statuses else 200
            if status is None:
                made.is_over.wait(30)
                return
            self.send_response(status)
            if status == 302:
                self.send_header("location", made.url)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        scheme = "https" if tls else "http"
        made.url = f"{scheme}://127.0.0.1:{server.server_port}/hook?for=me"
        yield made
        made.is_over.set()
        server.shutdown()


async def post(served: Served, url: str, **query: Any) -> httpx.Response:
    return await served.http.post("/predict", params={"callback_url": url, **query}, json={"data": [1, 2]})


async def settled(served: Served, job_id: str) -> dict[str, Any]:
    """The state of a job's webhook after its last attempt."""
    state: dict[str, Any] = {}

    async def read() -> bool:
        state.update((await served.http.get(f"/results/{job_id}")).json()["webhook"])
        return bool(state["status"] != "pending")

    give_up_at = time.monotonic() + 30
    while not await read():
        assert time.monotonic() < give_up_at, state
        await asyncio.sleep(0.01)
    return state


async def test_a_job_is_delivered_signed_after_two_failures(
    serve: Serve, hand_worker: HandWorkers, receiver: Receiver, client: redis.Redis
) -> None:
    worker, served = hand_worker(), await serve(**ON)
    receiver.statuses = [500, None]
    posted = await post(served, receiver.url)
    assert posted.status_code == 202
    job_id = posted.json()["id"]
    pending = (await served.http.get(f"/results?ids={job_id}")).json()["jobs"][0]["webhook"]
    assert pending == {"url": receiver.url, "status": "pending"}
    worker.finish(await worker.claimed())
    state = await settled(served, job_id)
    assert (state["status"], state["attempts"], state["url"]) == ("delivered", 3, receiver.url)
    assert receiver.jobs() == [job_id] * 3
    headers, body = receiver.heard[-1]
    document = (await served.http.get(f"/results/{job_id}")).json()
    del document["webhook"]
    assert httpx.Response(200, content=body).json() == document
    assert {dict(sent)["webhook-id"] for sent, _ in receiver.heard} == {job_id.replace(".", "-")}
    assert client.zcard(keys.WEBHOOKS) == 0
    metrics = (await served.http.get("/metrics")).text
    assert 'modelyard_webhooks_total{outcome="delivered"} 1.0' in metrics
    assert 'modelyard_webhooks_total{outcome="retried"} 2.0' in metrics
    assert headers["content-type"] == "application/json"


async def test_cancelled_and_expired_jobs_are_delivered_too(
    serve: Serve, hand_worker: HandWorkers, receiver: Receiver
) -> None:
    hand_worker()
    served = await serve(**ON)
    cancelled = (await post(served, receiver.url)).json()["id"]
    await served.http.delete(f"/results/{cancelled}")
    expired = (await post(served, receiver.url, deadline=0.1)).json()["id"]
    await until(lambda: sorted(receiver.jobs()) == sorted([cancelled, expired]), "both are heard", 10)


@pytest.mark.parametrize(("statuses", "attempts", "why"), [([410], 1, "410"), ([404, 302], 2, "redirects")])
async def test_a_webhook_is_given_up_after_the_last_attempt_or_when_it_is_unwanted(
    serve: Serve, hand_worker: HandWorkers, receiver: Receiver, statuses: list[int], attempts: int, why: str
) -> None:
    worker, served = hand_worker(), await serve(**ON | {"webhook_attempts": 2, "webhook_timeout_s": 10.0})
    receiver.statuses = list(statuses)
    job_id = (await post(served, receiver.url)).json()["id"]
    worker.finish(await worker.claimed())
    state = await settled(served, job_id)
    assert (state["status"], state["attempts"]) == ("failed", attempts)
    assert why in state["last_error"]
    assert len(receiver.heard) == attempts


async def test_a_webhook_goes_over_https_to_receivers_of_a_known_authority_alone(
    serve: Serve, hand_worker: HandWorkers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known, foreign = trustme.CA(), trustme.CA()
    known.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    on = ON | {"webhook_plain_http": False, "webhook_attempts": 1, "webhook_timeout_s": 10.0}
    worker, served = hand_worker(), await serve(**on)
    for authority, status in ((known, "delivered"), (foreign, "failed")):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        with receiving(context) as receiver:
            job_id = (await post(served, receiver.url)).json()["id"]
            worker.finish(await worker.claimed())
            state = await settled(served, job_id)
            assert (state["status"], receiver.jobs()) == (status, [job_id] if status == "delivered" else [])
    assert "CERTIFICATE_VERIFY_FAILED" in state["last_error"]


async def test_a_receiver_that_does_not_answer_leaves_room_for_the_others(
    serve: Serve, hand_worker: HandWorkers, receiver: Receiver
) -> None:
    worker, served = hand_worker(), await serve(**ON | {"webhook_timeout_s": 60.0})
    n_jobs = MOST_PER_HOST + 5
    receiver.statuses = [None] * n_jobs
    await asyncio.gather(*(post(served, receiver.url) for _ in range(n_jobs)))
    while n_jobs > 0:
        batch = await worker.claimed()
        worker.finish(batch)
        n_jobs -= len(batch.head.jobs)
    await until(lambda: len(receiver.heard) == MOST_PER_HOST, "the receiver has its most", 30)
    with receiving() as other:
        job_id = (await post(served, other.url)).json()["id"]
        worker.finish(await worker.claimed())
        assert (await settled(served, job_id))["status"] == "delivered"
    assert len(receiver.heard) == MOST_PER_HOST


async def test_a_name_that_leads_to_a_private_address_is_not_connected_to(
    serve: Serve, hand_worker: HandWorkers, receiver: Receiver
) -> None:
    worker, served = (
        hand_worker(),
        await serve(**ON | {"webhook_private_networks": False, "webhook_attempts": 1}),
    )
    job_id = (await post(served, receiver.url.replace("127.0.0.1", "localhost"))).json()["id"]
    worker.finish(await worker.claimed())
    assert "no public address" in (await settled(served, job_id))["last_error"]
    assert receiver.heard == []


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        *[(each, True) for each in ("1.1.1.1", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1")],
        *[(each, False) for each in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0")],
        *[(each, False) for each in ("::1", "::", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "224.0.0.1")],
        *[(each, False) for each in ("64:ff9b::7f00:1", "2002:7f00:1::", "ff0e::1")],
    ],
)
def test_only_public_addresses_are_connected_to(address: str, is_public: bool) -> None:
    assert may_connect(address, ControllerSettings()) is is_public


@pytest.mark.parametrize(
    ("settings", "url", "why"),
    [
        ({}, "https://hooks.example.com/", "sends no webhooks"),
        (ON, "https://example.org/", "may not be sent to example.org"),
        (ON, "https://notexample.com/", "may not be sent"),
        (ON | {"webhook_plain_http": False}, "http://hooks.example.com/", "begin with https://"),
        (ON, "ftp://hooks.example.com/", "begin with https or http"),
        (ON, "https://me:word@hooks.example.com/", "without user"),
        (ON, "https://hooks.example.com/#part", "fragment"),
        (ON, "https://hooks.example.com:port/", "must be an ASCII URL"),
        (ON, "https://hooks.example.com/ü", "must be an ASCII URL"),
        (ON, "https://hooks.example.com/a b", "must be an ASCII URL"),
        (ON, "https://hooks.example.com/\r\nx: y", "must be an ASCII URL"),
        (ON, "", "must be an ASCII URL"),
        (ON | {"webhook_private_networks": False}, "https://127.0.0.1/", "not a public address"),
        (
            ON | {"webhook_hosts": "*", "webhook_private_networks": False},
            "https://[::1]/",
            "not a public address",
        ),
    ],
)
def test_a_callback_url_that_is_not_allowed_is_refused(settings: dict[str, Any], url: str, why: str) -> None:
    with pytest.raises(WebhookNotAllowedError, match=why):
        check_url(url, ControllerSettings(**settings))


async def test_a_refused_callback_url_is_no_job(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker()
    served = await serve()
    for url in ("https://hooks.example.com/", ""):
        refused = await post(served, url)
        assert (refused.status_code, refused.json()["code"]) == (422, "webhook_not_allowed")
    assert nothing_is_queued(client)


async def test_an_idempotency_key_with_another_callback_url_is_another_request(
    serve: Serve, hand_worker: HandWorkers, receiver: Receiver
) -> None:
    hand_worker()
    served = await serve(**ON)
    key = {"idempotency-key": "a"}
    answers = [
        await served.http.post(f"/predict?callback_url={url}", json={"data": [1, 2]}, headers=key)
        for url in (receiver.url, receiver.url, receiver.url + "2")
    ]
    assert [each.status_code for each in answers] == [202, 202, 409]
    assert answers[0].json()["id"] == answers[1].json()["id"]


@pytest.mark.parametrize("secret", ["", "whsec_c2hvcnQ="])
def test_a_controller_that_may_send_webhooks_needs_a_secret(secret: str) -> None:
    settings = ControllerSettings(webhook_hosts="hooks.example.com", webhook_secret=secret)
    with pytest.raises(ConfigurationError, match=r"secret|SECRET"):
        create_app(settings)


async def test_webhooks_outlive_the_controller_that_was_killed_before_and_while_it_delivered_them(
    redis_server: RedisServer, hand_worker: HandWorkers, receiver: Receiver, free_port: Callable[[], int]
) -> None:
    worker, port = hand_worker(), free_port()
    process = controller_process(redis_server, port)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            await ready(http)
            receiver.statuses = [None]
            job_ids = [(await post_over(http, receiver.url)) for _ in range(2)]
            worker.finish(await worker.claimed())
            await until(lambda: len(receiver.heard) == 1, "the delivery of the first job has begun")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    worker.finish(await worker.claimed())  # nobody hears of it
    async with serving(settings_for(redis_server.url, **ON)):
        await until(lambda: set(receiver.jobs()) == set(job_ids), "both are delivered", 20)


async def test_a_webhook_survives_the_loss_of_what_redis_wrote_last(
    own_redis: OwnRedis, receiver: Receiver
) -> None:
    await until(own_redis.answers, "Redis answers")
    worker = HandWorker(own_redis.client, record())
    worker.start()
    async with serving(settings_for(own_redis.url, **ON)) as served:
        own_redis.remember()
        job_id = (await post(served, receiver.url)).json()["id"]
        await own_redis.set_back()
        await until(lambda: own_redis.client.zscore(keys.WEBHOOKS, job_id), "it is listed again", 10)
        worker.finish(await worker.claimed())
        await until(lambda: receiver.jobs() == [job_id], "it is delivered", 10)


def controller_process(server: RedisServer, port: int) -> subprocess.Popen[bytes]:
    variables = {f"MODELYARD_{name.upper()}": str(value) for name, value in ON.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "serve", "--port", str(port)],
        env=os.environ | variables | {"REDIS_URL": server.url},
        stderr=subprocess.DEVNULL,
    )


async def ready(http: httpx.AsyncClient) -> None:
    give_up_at = time.monotonic() + 30
    while True:
        try:
            if (await http.get("/readyz")).is_success:
                return
        except httpx.TransportError:
            assert time.monotonic() < give_up_at, "the controller is not ready"
        await asyncio.sleep(0.02)


async def post_over(http: httpx.AsyncClient, url: str) -> str:
    answer = await http.post("/predict", params={"callback_url": url}, json={"data": [1, 2]})
    job_id: str = answer.json()["id"]
    return job_id
