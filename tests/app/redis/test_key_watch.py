"""Watches of keys: woken by a change and by a lost connection, and honest where Redis cannot tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis

from app.redis.client import connect_async
from app.redis.key_watch import KeyWatch, Watch
from tests.controller.conftest import settings_for
from tests.pool_samples import RedisServer


@asynccontextmanager
async def watching(url: str) -> AsyncIterator[KeyWatch]:
    client = connect_async(settings_for(url))
    key_watch = KeyWatch(client, 1.0)
    running = asyncio.create_task(key_watch.run())
    try:
        yield key_watch
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await client.aclose()


async def armed(watch: Watch, *keys: str) -> None:
    for _ in range(1000):
        if await watch.arm(keys):
            return
        await asyncio.sleep(0.01)
    pytest.fail("the watch is not connected")


async def test_a_change_of_a_key_wakes_its_watch_once_and_no_other(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    async with watching(redis_server.url) as key_watch:
        with key_watch.watch(["a", "b"]) as watch, key_watch.watch(["c"]) as other:
            await armed(watch, "a", "b")
            await armed(other, "c")
            client.hset("b", "field", "1")
            assert await watch.wait(10) == {"b"}
            client.hset("b", "field", "2")  # it was not armed again
            client.set("c", "1")
            assert await other.wait(10) == {"c"}
            assert await watch.wait(0) == set()
            assert len(key_watch) == 2
        assert len(key_watch) == 0


async def test_a_lost_connection_wakes_every_watch_because_a_change_may_have_been_missed(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    async with watching(redis_server.url) as key_watch:
        with key_watch.watch(["a", "b"]) as watch:
            await armed(watch, "a")
            client.client_kill_filter(_type="normal", skipme=True)
            assert await watch.wait(10) == {"a", "b"}
            await armed(watch, "a")
            client.set("a", "1")
            assert await watch.wait(10) == {"a"}


@pytest.mark.parametrize("rule", ["-client|tracking", "-client|caching"])
async def test_where_redis_does_not_track_keys_arming_says_so(
    redis_server: RedisServer, client: redis.Redis, rule: str
) -> None:
    client.execute_command("ACL", "SETUSER", "plain", "on", ">word", "~*", "&*", "+@all", rule)
    url = redis_server.url.replace("unix://", "unix://plain:word@")
    async with watching(url) as key_watch:
        with key_watch.watch(["a"]) as watch:
            for _ in range(3):
                assert not await watch.arm(["a"])
                await watch.wait(0.1)
    client.execute_command("ACL", "DELUSER", "plain")
