"""The link to Redis: answers in order, what is published, and a connection that is lost, hangs or is refused."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.redis.client import connect_async
from app.redis.link import RedisLink
from app.redis.script import Call, LargeFields, Script
from tests.controller.conftest import settings_for, until
from tests.pool_samples import RedisServer

CHANNEL = "modelyard:test"
TIMEOUT_S = 0.3
SAMPLES_BYTES = bytes(range(256)) * 1000
ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")


class Ear:
    """A link that is kept connected, and what it heard."""

    def __init__(self, link: RedisLink, heard: list[bytes]) -> None:
        self.link = link
        self.heard = heard

    async def ask(self, *words: Any) -> Any:
        """The answer to a command; errors are answers, too."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.link.call(answer.set_result, *words)
        return await asyncio.wait_for(answer, 5)

    async def run(self, script: Script, *args: Any) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        large = LargeFields("record", [("data", SAMPLES_BYTES)], 60_000)
        self.link.store_and_run(large, Call(script, ["sum"], list(args)), answer.set_result)
        return await asyncio.wait_for(answer, 5)

    async def connected(self) -> None:
        """Wait until it is."""
        answers: list[Any] = []

        def works() -> bool:
            self.link.call(answers.append, "PING")
            return b"PONG" in answers

        await until(works, "the link is connected")


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Ear]:
    heard: list[bytes] = []
    client = connect_async(settings_for(url))
    link = RedisLink(client, TIMEOUT_S)
    link.listen(CHANNEL, heard.append)
    keeping = asyncio.create_task(link.run())
    try:
        ear = Ear(link, heard)
        await ear.connected()
        yield ear
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        await client.aclose()


@pytest.fixture
async def ear(redis_server: RedisServer) -> AsyncIterator[Ear]:
    async with listening(redis_server.url) as ear:
        yield ear


async def test_calls_are_answered_in_their_order_and_an_error_is_an_answer(ear: Ear) -> None:
    answers: list[Any] = []
    for words in (("SET", "n", 1), ("INCR", "n"), ("LPUSH", "n", "x"), ("GET", "n")):
        ear.link.call(answers.append, *words)
    await until(lambda: len(answers) == 4, "all are answered")
    assert answers[:2] == [b"OK", 2]
    assert isinstance(answers[2], ResponseError)
    assert answers[3] == b"2"


async def test_what_is_published_is_heard_between_answers(ear: Ear, client: redis.Redis) -> None:
    for number in range(3):
        client.publish(CHANNEL, f"notice {number}")
        assert await ear.ask("PING") == b"PONG"
    await until(lambda: len(ear.heard) == 3, "all are heard")
    assert ear.heard == [b"notice %d" % number for number in range(3)]


async def test_a_script_that_redis_does_not_know_is_sent_whole(ear: Ear, client: redis.Redis) -> None:
    client.script_flush()
    assert [await ear.run(ADD, 2), await ear.run(ADD, 3)] == [2, 5]
    client.script_flush()
    assert await ear.run(ADD, 4) == 9


async def test_samples_are_written_with_what_the_script_does(ear: Ear, client: redis.Redis) -> None:
    answers: list[Any] = []
    for number in (1, 2):
        large = LargeFields(f"record {number}", [("data", SAMPLES_BYTES)], 60_000)
        ear.link.store_and_run(large, Call(ADD, ["sum"], [number]), answers.append)
    assert await ear.ask("GET", "sum") == b"3"
    assert answers == [1, 3]
    for number in (1, 2):
        assert client.hgetall(f"record {number}") == {b"data": SAMPLES_BYTES}
        assert 0 < client.pttl(f"record {number}") <= 60_000


def in_pieces(n_pieces: int) -> LargeFields:
    pieces = [(f"p:{index}", bytes([index]) * 2**20) for index in range(n_pieces)]
    return LargeFields("record", pieces, 300_000)


async def test_pieces_are_written_one_after_the_other_and_other_calls_pass_in_between(
    ear: Ear, client: redis.Redis
) -> None:
    large, answers = in_pieces(3), list[Any]()
    ear.link.store_and_run(large, Call(ADD, ["sum"], [1]), answers.append)
    assert await ear.ask("GET", "sum") is None
    assert client.ttl("record") <= 60
    await until(lambda: answers == [1], "the script has run")
    assert client.hgetall("record") == {name.encode(): value for name, value in large.fields}
    assert 60 < client.ttl("record") <= 300


async def test_where_a_piece_is_refused_nothing_is_done_and_nothing_left(
    ear: Ear, client: redis.Redis
) -> None:
    answers: list[Any] = []
    client.config_resetstat()
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 5 * 2**20)
    try:
        ear.link.store_and_run(in_pieces(12), Call(ADD, ["sum"], [1]), answers.append)
        await until(lambda: answers, "it is answered")
    finally:
        client.config_set("maxmemory", 0)
    assert "maxmemory" in str(answers[0])
    await until(lambda: not client.exists("record"), "the pieces are removed")
    assert client.info("commandstats")["cmdstat_hset"]["calls"] > 1
    assert client.get("sum") is None


async def test_a_connection_that_is_lost_between_pieces_fails_the_call(ear: Ear, client: redis.Redis) -> None:
    answers: list[Any] = []
    ear.link.store_and_run(in_pieces(12), Call(ADD, ["sum"], [1]), answers.append)
    await ear.ask("PING")  # answered after the first piece; the event loop then waits for this client
    assert client.exists("record")
    client.client_kill_filter(_type="pubsub")
    await until(lambda: answers, "the call is given up")
    assert isinstance(answers[0], RedisConnectionError)
    await ear.connected()
    assert client.get("sum") is None
    assert client.ttl("record") <= 60


async def test_where_samples_are_refused_nothing_is_done(ear: Ear, client: redis.Redis) -> None:
    await ear.run(ADD, 1)
    client.config_set("maxmemory", 1)
    try:
        answer = await ear.run(ADD, 1)
    finally:
        client.config_set("maxmemory", 0)
    assert isinstance(answer, ResponseError)
    assert "maxmemory" in str(answer)
    assert client.get("sum") == b"1"
    assert await ear.run(ADD, 1) == 2


async def test_an_error_of_the_script_is_the_answer(ear: Ear) -> None:
    answer = await ear.run(ADD, "no number")
    assert isinstance(answer, ResponseError)
    assert "not an integer" in str(answer)


async def test_a_lost_connection_fails_its_calls_and_is_made_anew(ear: Ear, client: redis.Redis) -> None:
    blocked: list[Any] = []
    ear.link.call(blocked.append, "BLPOP", "nothing", 0)
    client.client_kill_filter(_type="pubsub")
    await until(lambda: blocked, "the call is given up")
    assert isinstance(blocked[0], RedisConnectionError)
    await ear.connected()
    client.publish(CHANNEL, "again")
    await until(lambda: ear.heard == [b"again"], "it has subscribed again")


async def test_a_redis_that_hangs_fails_the_calls_in_time_and_is_found_again(
    ear: Ear, redis_server: RedisServer
) -> None:
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        assert isinstance(await ear.ask("PING"), RedisTimeoutError | RedisConnectionError)
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    await ear.connected()


async def test_a_silent_connection_is_tried(ear: Ear, redis_server: RedisServer) -> None:
    # Nothing is asked, so only the link's own ping can tell that nothing would be heard any more.
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        await until(lambda: not ear.link.is_connected, "the connection is given up")
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    await ear.connected()


async def test_a_user_who_may_not_subscribe_is_told_so(
    redis_server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.acl_setuser("deaf", enabled=True, passwords=["+pw"], commands=["+@all"], keys=["*"], channels=[])
    try:
        url = f"{redis_server.url}?username=deaf&password=pw"
        refused = RedisLink(connect_async(settings_for(url)), TIMEOUT_S)
        refused.listen(CHANNEL, lambda _: None)
        keeping = asyncio.create_task(refused.run())
        await until(lambda: "NOPERM" in caplog.text, "it is logged")
        keeping.cancel()
        await asyncio.wait([keeping])
    finally:
        client.acl_deluser("deaf")


async def test_what_one_hearer_raises_does_not_end_the_connection(
    ear: Ear, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("a mistake")

    ear.link.call(fail, "PING")
    assert await ear.ask("PING") == b"PONG"
    assert "could not be processed" in caplog.text
