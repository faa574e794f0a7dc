"""A password that is changed, in Redis and in its file: each new connection reads it, and nothing starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from app.celery_app import create_celery
from app.redis.client import connect, connect_async
from app.redis.link import RedisLink
from tests.controller.conftest import settings_for, until
from tests.pool_samples import RedisServer

FIRST, SECOND = "p@ss/word?", "another"


@pytest.fixture
def operator(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.execute_command("ACL", "SETUSER", "pool", "on", f">{FIRST}", "~*", "&*", "+@all")
        yield client
        client.acl_deluser("pool")


async def test_a_new_password_counts_for_every_connection_without_a_restart(
    redis_server: RedisServer, operator: redis.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(FIRST)
    settings = settings_for(redis_server.url.replace("unix://", "unix://pool@"), redis_password_file=file)
    asynchronous, answers = connect_async(settings), list[object]()
    link = RedisLink(asynchronous, 1.0)
    link.listen("modelyard:test", lambda _: None)
    await link.connect()
    keeping = asyncio.create_task(link.run())
    with connect(settings) as synchronous:
        assert synchronous.acl_whoami() == "pool"
        assert await asynchronous.acl_whoami() == "pool"

        operator.execute_command("ACL", "SETUSER", "pool", "resetpass", f">{SECOND}")
        operator.client_kill_filter(_type="normal", skipme=True)
        operator.client_kill_filter(_type="pubsub")
        with pytest.raises(redis.AuthenticationError):
            synchronous.acl_whoami()
        await until(lambda: "WRONGPASS" in link.refusal, "the link is refused")
        file.write_text(f"{SECOND}\n")
        await until(lambda: link.is_connected, "the link is connected")
        link.call(answers.append, "ACL", "WHOAMI")
        await until(lambda: answers == [b"pool"], "the link answers")
        assert synchronous.acl_whoami() == "pool"
        assert await asynchronous.acl_whoami() == "pool"
    keeping.cancel()
    await asyncio.wait([keeping])
    await asynchronous.aclose()


def test_celery_reads_the_password_again_for_each_connection(
    operator: redis.Redis, free_port: Callable[[], int], tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(FIRST)
    port = free_port()
    operator.config_set("port", port)
    settings = settings_for(f"redis://pool@127.0.0.1:{port}/0", redis_password_file=file)
    celery = create_celery(settings)
    try:
        with celery.connection_for_read() as connection:
            assert connection.default_channel.client.acl_whoami() == "pool"
            operator.execute_command("ACL", "SETUSER", "pool", "resetpass", f">{SECOND}")
            operator.client_kill_filter(_type="normal", skipme=True)
            file.write_text(SECOND)
            assert connection.default_channel.client.acl_whoami() == "pool"
    finally:
        operator.config_set("port", 0)
