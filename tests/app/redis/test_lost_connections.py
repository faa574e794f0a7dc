"""What Redis refuses is a lost connection, whichever command it refuses: kombu and the clients here outlive those."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
import redis.asyncio

from app.redis.refusals import RefusedError, async_renewing, refusal, renewing
from tests.conftest import RedisServer, running_redis

Refuse = Callable[[redis.Redis], object]
REFUSALS: dict[str, Refuse] = {
    "NOPERM": lambda operator: operator.execute_command("ACL", "SETUSER", "default", "-@all"),
    "NOAUTH": lambda operator: operator.execute_command("ACL", "SETUSER", "default", "resetpass", ">unknown"),
    "MASTERDOWN": lambda operator: operator.config_set("replica-serve-stale-data", "no"),
}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with running_redis() as started:
        yield started


@pytest.fixture
def operator(server: RedisServer) -> Iterator[redis.Redis]:
    """A client that no test keeps out."""
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "operator", "on", ">operator", "~*", "&*", "+@all")
    with redis.Redis.from_url(server.url, username="operator", password="operator") as client:
        client.replicaof("127.0.0.1", "1")  # a primary that never answers
        yield client


@pytest.mark.parametrize("said", REFUSALS)
def test_a_connection_that_is_refused_while_it_greets_is_lost(
    said: str, server: RedisServer, operator: redis.Redis
) -> None:
    connection = renewing(redis.UnixDomainSocketConnection)(path=str(server.socket), health_check_interval=1)
    REFUSALS[said](operator)

    def ask() -> None:
        connection.connect()
        connection.send_command("PING")
        connection.read_response()

    with pytest.raises(redis.ConnectionError) as caught:
        ask()
    assert refusal(caught.value).startswith(said)


@pytest.mark.parametrize("said", REFUSALS)
async def test_so_is_an_asynchronous_one(said: str, server: RedisServer, operator: redis.Redis) -> None:
    connection = async_renewing(redis.asyncio.UnixDomainSocketConnection)(
        path=str(server.socket), health_check_interval=1
    )
    REFUSALS[said](operator)

    async def ask() -> None:
        await connection.connect()
        await connection.send_command("PING")
        await connection.read_response()

    with pytest.raises(redis.ConnectionError) as caught:
        await ask()
    assert refusal(caught.value).startswith(said)
    await connection.disconnect(nowait=True)


def test_an_error_that_is_no_refusal_stays_as_it_is(server: RedisServer) -> None:
    connection = renewing(redis.UnixDomainSocketConnection)(path=str(server.socket), db=10_000)
    with pytest.raises(redis.ResponseError, match="out of range") as caught:
        connection.connect()
    assert not isinstance(caught.value, RefusedError)
