"""A controller as `modelyard serve` runs it, and callers who send slowly, too much, or nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import redis
import uvloop

from controller.http.server import LISTENERS, make_server
from controller.main import create_app
from tests.conftest import RedisServer, running_redis, wait_until_true
from tests.controller.conftest import nothing_is_queued, settings_for, until
from tests.e2e.fuzz import settled_rss_mib
from tests.pool_samples import publish, record

TIMEOUT_S = 0.5
KEEP_ALIVE_S = 1.5
LONGER_S = 2.0  # than that, and than the second between two looks
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def redis_of_module() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@dataclass(frozen=True)
class Running:
    """A controller's process, and where it listens."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    log: Path


@pytest.fixture(scope="module")
def running(
    redis_of_module: RedisServer, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A controller that has patience for half a second, and sees a worker that takes nothing."""
    with redis.Redis.from_url(redis_of_module.url) as client:
        publish(client, record())
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    environment = os.environ | {
        "REDIS_URL": redis_of_module.url,
        "MODELYARD_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
        "MODELYARD_KEEP_ALIVE_S": str(KEEP_ALIVE_S),
        "MODELYARD_MAX_BODY_BYTES": "1024",
        "MODELYARD_LAME_DUCK_S": "0",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli", "serve", "--port", str(port)],
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_true(lambda: answers(port), 60, "the controller is ready")
        yield Running(process, ("127.0.0.1", port), log)
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text()


@pytest.fixture
def address(running: Running) -> tuple[str, int]:
    return running.address


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def exchange(address: tuple[str, int], *pieces: bytes) -> bytes:
    """Send pieces, and read until the controller closes the connection."""
    with socket.create_connection(address, timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def read_answer(connection: socket.socket) -> bytes:
    """One whole answer."""
    received, length = b"", None
    while length is None or len(received.partition(b"\r\n\r\n")[2]) < length:
        piece = connection.recv(65536)
        assert piece, received
        received += piece
        if b"\r\n\r\n" in received:
            found = re.search(rb"content-length: (\d+)", received)
            assert found
            length = int(found[1])
    return received


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of a problem document that ended its connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert b"x-content-type-options: nosniff" in head
    problem = json.loads(body)
    status = int(head.split(b" ")[1])
    assert problem["status"] == status
    return status, problem["code"]


# What a caller sends before falling silent, and what the answer is then; all at once, as each takes its time.
SLOW: dict[str, tuple[list[bytes], int | None]] = {
    "nothing": ([], None),
    "an empty line": ([b"\r\n"], None),
    "a byte": ([b"P"], 408),
    "half a head": ([HEAD + b"X-Slow: "], 408),
    "half a body": ([HEAD + b"Content-Length: 15\r\n\r\n", b'{"data"'], 408),
    "half a chunk": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"], 408),
    "no body where one was announced": (
        [b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"],
        200,
    ),
}


def test_a_request_that_does_not_arrive_is_given_up(
    address: tuple[str, int], redis_of_module: RedisServer
) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in SLOW]
        for connection, (pieces, _) in zip(connections, SLOW.values(), strict=True):
            for piece in pieces:
                connection.sendall(piece)
        answers = {name: read_all(each) for name, each in zip(SLOW, connections, strict=True)}
    for name, (_, status) in SLOW.items():
        if status == 408:
            assert refusal(answers[name]) == (408, "request_timeout"), name
        else:
            assert answers[name].startswith(b"HTTP/1.1 200" if status else b""), name
            assert bool(answers[name]) == bool(status), name
    with redis.Redis.from_url(redis_of_module.url) as client:
        assert nothing_is_queued(client)


def test_a_caller_who_sends_a_little_at_a_time_is_given_up_too(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as header, socket.create_connection(address) as lines:
        header.sendall(HEAD)
        lines.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert lines.recv(65536).startswith(b"HTTP/1.1 200")
        still_open = {header: b"X-A: b\r\n", lines: b"\r\n"}
        give_up_at_s = time.monotonic() + 30
        while still_open:
            assert time.monotonic() < give_up_at_s
            for connection, piece in list(still_open.items()):
                if not is_open_for(connection, piece):
                    del still_open[connection]
            time.sleep(0.05)  # the pace is what is tested


def test_a_connection_is_kept_as_long_as_it_is_used(address: tuple[str, int]) -> None:
    body = b'{"data": [1, 2]}'
    post = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        used, idle, idle_prediction = (
            stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(3)
        )
        received = ask(idle, get, 200) + ask(idle_prediction, post, 202) + ask(used, post, 202)
        since_s = time.monotonic()
        while not select.select([idle, idle_prediction], [], [], 0)[0]:
            assert time.monotonic() < since_s + 30
            time.sleep(0.1)  # as often as it is used
            received += ask(used, post, 202)
        assert time.monotonic() > since_s + KEEP_ALIVE_S - 0.1
        assert read_all(idle) == read_all(idle_prediction) == b""
        ask(used, get, 200)
    cancel_all(address, received)


def ask(connection: socket.socket, request: bytes, status: int) -> bytes:
    connection.sendall(request)
    answer = read_answer(connection)
    assert answer.startswith(b"HTTP/1.1 %d" % status)
    return answer


def cancel_all(address: tuple[str, int], answers: bytes) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        for url in re.findall(rb"location: (\S+)", answers):
            assert client.delete(url.decode()).status_code == 200


def is_open_for(connection: socket.socket, piece: bytes) -> bool:
    try:
        connection.sendall(piece)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"X-Long: " + b"a" * 70_000,
        HEAD + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: a\r\n" % i for i in range(101)) + b"\r\n",
        b"GET /" + b"a" * 70_000,
    ],
    ids=["a header without an end", "a long header", "many headers", "a long path"],
)
def test_a_head_that_is_too_large_is_refused(address: tuple[str, int], sent: bytes) -> None:
    assert refusal(exchange(address, sent)) == (431, "head_too_large")


def test_refused_heads_leave_nothing_in_memory(running: Running) -> None:
    sent = HEAD + b"X-Long: " + b"a" * 70_000 + b"\r\n\r\n"
    for _ in range(20):
        exchange(running.address, sent)
    before_mib = settled_rss_mib(running.process.pid)
    for _ in range(300):
        exchange(running.address, sent)
    grown_mib = settled_rss_mib(running.process.pid) - before_mib
    assert grown_mib < 100 * len(sent) / 2**20


@pytest.mark.parametrize("sent", [b"\x16\x03\x01 TLS\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"SECRET\r\n\r\n"])
def test_what_is_no_http_is_a_problem_document_too(address: tuple[str, int], sent: bytes) -> None:
    answer = exchange(address, sent)
    assert refusal(answer) == (400, "request_malformed")
    assert b"SECRET" not in answer


@pytest.mark.parametrize(
    ("sent", "code"), [(b"NONSENSE\r\n\r\n", "request_malformed"), (HEAD + b"a" * 70_000, "head_too_large")]
)
def test_nonsense_is_counted_and_fills_no_log(running: Running, sent: bytes, code: str) -> None:
    def counted() -> float:
        metrics = httpx.get(f"http://127.0.0.1:{running.address[1]}/metrics").text
        found = re.search(rf'modelyard_requests_rejected_total{{code="{code}"}} (\S+)', metrics)
        return float(found[1]) if found else 0.0

    before, log_bytes = counted(), running.log.stat().st_size
    for _ in range(5):
        exchange(running.address, sent)
    assert counted() == before + 5
    assert running.log.stat().st_size == log_bytes


def test_waiting_for_an_outcome_takes_as_long_as_it_takes(address: tuple[str, int]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}") as client:
        answer = client.post(f"/predict?wait={LONGER_S}", json={"data": [1, 2]}, timeout=30)
        assert answer.status_code == 202
        assert client.delete(answer.headers["location"]).status_code == 200  # on the same connection


def test_a_pipelined_request_waits_for_its_turn(address: tuple[str, int]) -> None:
    body = b'{"data": [1, 2]}'
    first = b"POST /predict?wait=%g HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (
        3 * TIMEOUT_S,
        len(body),
    )
    second = (
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(first + body + second)
        time.sleep(0.1)  # so that the second one's body comes by itself
        connection.sendall(body)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 202") == 2
    cancel_all(address, received)


def test_a_request_to_upgrade_is_answered_as_if_it_had_not_asked(address: tuple[str, int]) -> None:
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(asked)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_callers_who_come_at_once_are_let_in_at_once(
    redis_of_module: RedisServer, free_port: Callable[[], int]
) -> None:
    """However busy the event loop is: not one of them a turn."""

    async def turns_until_all_are_in(port: int) -> int:
        settings = settings_for(redis_of_module.url, host="127.0.0.1", port=port)
        server = make_server(create_app(settings), settings, access_log=False)
        serving = asyncio.create_task(server.serve(server.listen()))
        await until(lambda: server.started)
        turns = 0
        with ExitStack() as stack:
            for _ in range(LISTENERS):  # Linux connects them although nobody has taken them yet
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            while len(server.connections.open) < LISTENERS:
                turns += 1
                await asyncio.sleep(0)
        server.should_exit = True
        await serving
        return turns

    assert uvloop.run(turns_until_all_are_in(free_port())) <= 3


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        (["serve", "--host", "0.0.0.0"], {}, "the controller would listen on 0.0.0.0"),
        (["serve"], {"MODELYARD_HOST": "::"}, "the controller would listen on ::"),
        (["flower", "--address=0.0.0.0"], {}, "Flower would listen on 0.0.0.0"),
        (
            ["flower"],
            {"MODELYARD_API_KEYS": "a predict sha256:" + "0" * 64},
            "Flower, which shows every batch",
        ),
        (["flower", "--basic-auth=a:SECRET"], {}, "on the command line"),
        (["serve"], {"MODELYARD_API_KEYS": "modelyard_SECRET"}, "MODELYARD_API_KEYS, line 1"),
        (["predict"], {"MODELYARD_API_KEY": "SECRET ä"}, "the API key holds characters"),
    ],
)
def test_what_would_let_strangers_in_or_is_no_key_is_refused_in_one_line(
    arguments: list[str], variables: dict[str, str], told: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        env=os.environ | {"REDIS_URL": "unix:///nowhere"} | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "SECRET" not in done.stderr + done.stdout
