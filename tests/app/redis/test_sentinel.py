"""Redis behind Sentinel: every kind of connection finds the primary, and follows a failover.

All of them log in as users of the files in `deploy`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.celery_app import create_celery
from app.redis.client import connect, connect_async, ledger_errors
from app.redis.link import RedisLink
from app.redis.script import Call, Script
from app.redis.script_connection import ScriptConnection
from app.redis.sentinel import watch
from app.server_errors import LedgerUnavailableError
from app.settings import Settings, load
from faults.sentinel_servers import SentinelServers
from tests.controller.conftest import until
from tests.redis_users import shipped_users

pytestmark = pytest.mark.process
PASSWORD, SENTINEL_PASSWORD = "p@ss,w:rd/1", "s3nt/nel"
ADD = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
SUM = "modelyard:sum"
CALL = Call(ADD, [SUM], [1])


@pytest.fixture(scope="module")
def servers() -> Iterator[SentinelServers]:
    with (
        tempfile.TemporaryDirectory(prefix="yard-") as folder,
        SentinelServers(
            Path(folder),
            password=PASSWORD,
            sentinel_password=SENTINEL_PASSWORD,
            users=shipped_users(lambda _: PASSWORD),
        ) as started,
    ):
        yield started


@pytest.fixture
def settings(servers: SentinelServers, tmp_path: Path) -> Settings:
    files = {"redis_password_file": PASSWORD, "redis_sentinel_password_file": SENTINEL_PASSWORD}
    for name, password in files.items():
        (tmp_path / name).write_text(password)
    paths = {name: tmp_path / name for name in files}
    return load(Settings, redis_url=url_of(servers, "controller"), **paths)


def url_of(servers: SentinelServers, user: str) -> str:
    """What REDIS_URL takes for a process of this user."""
    return servers.url.replace("://", f"://{user}@")


def port_of(client: Any) -> int:
    """Port of the server that a client reaches."""
    return int(client.info("server")["tcp_port"])


def celery_port(settings: Settings) -> int:
    """Port of the server that Celery's commands reach, with kombu's own transport, as an operator."""
    url = settings.redis_url.replace("controller@", "operator@")
    with create_celery(settings.model_copy(update={"redis_url": url})).connection_for_read() as broker:
        return port_of(broker.default_channel.client)


async def test_every_connection_follows_an_ordered_failover_before_the_former_primary_is_told(
    servers: SentinelServers, settings: Settings
) -> None:
    former, called = servers.primary(), list[Any]()
    with watch(settings.effective_redis_url), connect(settings) as client:
        async with connect_async(settings) as async_client:
            scripts, link = ScriptConnection(client), RedisLink(async_client, 2.0)
            running = asyncio.create_task(link.run())
            assert celery_port(settings) == former
            await until(lambda: link.is_connected, "the link is connected")
            assert port_of(client) == former
            scripts.run(CALL)
            servers.fail_over()
            await until(lambda: servers.primary() != former, "there is another primary")
            await until(lambda: port_of(client) != former, "the client has followed")
            with servers.client(former) as left:
                # It would still take a write, and lose it.
                assert left.info("replication")["role"] == "master"
            scripts.run(CALL)  # the new primary has not seen the script
            before = int(await async_client.get(SUM) or 0)

            def link_adds() -> bool:
                """Whether the link has answered; asks again, as a call fails if the link is being ended."""
                if link.is_connected and (not called or isinstance(called[-1], RedisError)):
                    called.append(None)
                    link.run_script(CALL, lambda answer: called.__setitem__(-1, answer))
                return bool(called) and isinstance(called[-1], int)

            await until(link_adds, "the link adds on the new primary")
            assert called[-1] == before + 1
            running.cancel()
    await until(lambda: celery_port(settings) == servers.primary(), "Celery's commands have followed")


def test_a_connection_that_was_ended_under_its_user_is_a_lost_one_also_on_uvloop(
    servers: SentinelServers, settings: Settings
) -> None:
    async def ping(connection: Any) -> None:
        await connection.send_command("PING")
        await connection.read_response()

    async def use_an_ended_one() -> None:
        async with connect_async(settings) as client:
            connection = client.connection_pool.make_connection()
            await connection.connect()
            connection.end()
            await asyncio.sleep(0)  # its end is a callback of the loop
            with pytest.raises(RedisConnectionError):
                await ping(connection)

    for loop_factory in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(use_an_ended_one())


def test_a_connection_that_fails_asks_the_sentinels_that_are_left(
    servers: SentinelServers, settings: Settings
) -> None:
    servers.stop(servers.sentinel_ports[0])
    with connect(settings) as client:
        assert port_of(client) == servers.primary()


def test_a_primary_that_no_sentinel_knows_is_named_in_the_error(
    servers: SentinelServers, settings: Settings
) -> None:
    url = settings.effective_redis_url.replace("/mymaster", "/another")
    client = connect(Settings(redis_url=url))
    with pytest.raises(LedgerUnavailableError, match=r"primary 'another' \(No such master"), ledger_errors():
        client.ping()
