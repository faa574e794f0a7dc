"""A Redis that comes back with less than it confirmed: who says so, and when nobody does. On real servers."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.clock import PoolClock
from app.fsck.consistency_check import Doctor
from app.ledger.marks import decode
from app.redis import keys
from app.settings import Settings
from app.worker_record import assign_number
from cli.local_pool import redis_server as pool_redis
from controller.recovery.data_loss import LossWatch
from tests.conftest import redis_answers, wait_until_true
from tests.pool_samples import record
from workers.process.heartbeat import Heartbeat

RETENTION_S = 100.0
ACL = Path(__file__).parents[3] / "deploy" / "redis-users.acl"
RESTRICTED = "user default off resetpass"  # as the file had it before
OPERATOR = "user operator on ~* &* +@all >secret"


@dataclass
class Server:
    """A Redis server with users and an append-only file, to end and to start again."""

    folder: Path
    port: int
    default_user: str
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def url(self) -> str:
        return f"redis://operator:secret@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        (self.folder / "users.acl").write_text(f"{self.default_user}\n{OPERATOR}\n")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        options += ["--aclfile", str(self.folder / "users.acl"), "--appendonly", "yes"]
        self.process = subprocess.Popen([pool_redis.find_server(), *options], stdout=subprocess.DEVNULL)
        wait_until_true(lambda: redis_answers(self.url), what="Redis answers")

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    async def restart(self, client: redis.asyncio.Redis) -> None:
        await client.connection_pool.disconnect()
        await asyncio.to_thread(self.end)
        await asyncio.to_thread(self.start)


Start = Callable[[str], Server]


@pytest.fixture
def start(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Start]:
    started: list[Server] = []

    def make(default_user: str) -> Server:
        server = Server(tmp_path, free_port(), default_user)
        server.start()
        started.append(server)
        return server

    yield make
    for server in started:
        server.end()


@dataclass
class Watched:
    """A watch on a server, and how often it told of a loss."""

    client: redis.asyncio.Redis
    losses: int = 0

    def __post_init__(self) -> None:
        self.watch = LossWatch(self.client, 1.0, RETENTION_S, self._count)

    def _count(self) -> None:
        self.losses += 1

    async def look(self) -> int:
        await self.watch.look()
        return self.losses


def shipped_default_user() -> str:
    return next(line for line in ACL.read_text().splitlines() if line.startswith("user default"))


async def long_ago(client: Any) -> None:
    """Have what was confirmed last be confirmed longer ago than controllers keep copies."""
    for name in ("at_ms", "confirmed_at_ms"):
        await client.hincrby(keys.MARKS, name, -60_000)


async def findings(client: redis.asyncio.Redis, url: str) -> dict[str, str]:
    report = await Doctor(client, Settings(redis_url=url)).examine(0)
    return {found.kind: found.detail for found in report.findings}


async def test_a_restart_with_the_users_as_shipped_loses_nothing_and_nobody_says_so(start: Start) -> None:
    server = start(shipped_default_user())
    async with redis.asyncio.Redis.from_url(server.url) as client:
        watched = Watched(client)
        await watched.look()
        await server.restart(client)
        assert await watched.look() == await Watched(client).look() == 0
        assert await findings(client, server.url) == {}


async def test_a_default_user_with_fewer_rights_is_found_before_the_restart(start: Start) -> None:
    server = start(RESTRICTED)
    async with redis.asyncio.Redis.from_url(server.url) as client:
        detail = (await findings(client, server.url))["default_user_restricted"]
        assert "ACL SETUSER default ~* &* +@all" in detail
        await client.execute_command("ACL", "SETUSER", "default", "~*", "&*", "+@all")
        assert await findings(client, server.url) == {}
        with (
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)) as anybody,
            pytest.raises(redis.AuthenticationError),
        ):
            anybody.ping()


@pytest.mark.parametrize("remembers", [True, False], ids=["that lives", "started since"])
async def test_a_loss_of_transactions_is_told_by_a_controller(
    start: Start, remembers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(RESTRICTED)
    async with redis.asyncio.Redis.from_url(server.url) as client:
        info = await client.info("server")  # Valkey 8 gives the version of Redis that it is compatible with
        if int(info["redis_version"].partition(".")[0]) >= 8:
            pytest.skip("this Redis loads transactions whatever the default user may do")
        watched = Watched(client)
        await watched.look()
        await server.restart(client)
        again = watched if remembers else Watched(client)
        with caplog.at_level(logging.ERROR):
            assert await again.look() == 1
            assert await again.look() == 1
        assert caplog.text.count("Redis lost all writes confirmed until") == 1
        told = await findings(client, server.url)
        assert told["data_lost"].startswith("it lost all writes confirmed until")


async def test_an_emptied_redis_is_told_and_the_note_lives_as_long_as_outcomes_would(start: Start) -> None:
    server = start(shipped_default_user())
    async with redis.asyncio.Redis.from_url(server.url) as client:
        watched = Watched(client)
        await watched.look()
        await client.flushall()
        assert await watched.look() == 1
        noted = await client.get(keys.LOSS)
        assert isinstance(noted, bytes)
        loss = decode(noted)
        assert loss
        assert (loss.since_ms, loss.until_ms <= loss.noticed_at_ms) == (0, True)
        assert 0 < await client.pttl(keys.LOSS) <= RETENTION_S * 1000


async def test_a_redis_that_was_emptied_without_a_controller_is_told_by_the_next_one(start: Start) -> None:
    server = start(shipped_default_user())
    async with redis.asyncio.Redis.from_url(server.url) as client:
        with redis.Redis.from_url(server.url) as own:
            assign_number(own, record().queue, None)
            heartbeat = Heartbeat(own, record(), PoolClock(), 0.05)
            heartbeat.start()
            assert await Watched(client).look() == 0
            own.flushall()
            wait_until_true(lambda: own.hexists(keys.MARKS, "confirmed_at_ms"), what="the worker has noticed")
            heartbeat.close()
        watched = Watched(client)
        assert await watched.look() == await watched.look() == 1
        assert (await findings(client, server.url))["data_lost"].startswith("it lost all writes confirmed")


@pytest.mark.parametrize(("is_long_ago", "losses"), [(False, 0), (True, 1)], ids=["seconds", "a minute"])
async def test_a_redis_that_was_set_back_is_told_unless_copies_make_it_good(
    start: Start, is_long_ago: bool, losses: int
) -> None:
    server = start(shipped_default_user())
    async with redis.asyncio.Redis.from_url(server.url) as client:
        watched = Watched(client)
        await watched.look()
        if is_long_ago:
            await long_ago(client)
        before: Any = await client.dump(keys.MARKS)
        await watched.look()
        await client.restore(keys.MARKS, 0, before, replace=True)
        assert await watched.look() == losses


async def test_controllers_and_a_full_redis_give_no_false_alarm(start: Start) -> None:
    server = start(shipped_default_user())
    async with redis.asyncio.Redis.from_url(server.url) as client:
        both = [Watched(client), Watched(client)]
        for _ in range(3):
            await asyncio.gather(*(each.look() for each in both))
        await client.config_set("maxmemory", "1mb")
        for each in both:
            with pytest.raises(Exception, match="Redis is full"):
                await each.look()
        await client.config_set("maxmemory", "0")
        assert [await each.look() for each in both] == [0, 0]
