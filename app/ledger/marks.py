"""Detection of data that Redis confirmed and then lost, and the record of it for `modelyard doctor`.

Each controller makes a mark in Redis every heartbeat: a count that only grows. A script writes it, as with the ledger's
records. If Redis restarts with a lower count, it has lost all later writes. A plain command writes the count a second
time. That copy survives a loss of transactions alone, so that controllers started later detect the loss, too. A worker
whose number is gone writes such a copy, so that a controller started after a loss of everything detects it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from app.redis import keys
from app.redis.client import AsyncClient, Client
from app.redis.script import Call, load, run


class Mark(msgspec.Struct, frozen=True, order=True):
    """One mark.

    Attributes:
        count: Number of marks so far, including this one.
        at_ms: When it was made, Redis's clock.
    """

    count: int = 0
    at_ms: int = 0


class Loss(msgspec.Struct, frozen=True):
    """One data loss; `str` describes it in words. Times are milliseconds of Redis's clock.

    Attributes:
        since_ms: Earlier writes survived; 0 if all data is lost.
        until_ms: The last time at which Redis is known to have had all data.
        noticed_at_ms: When a controller detected the loss.
    """

    since_ms: int
    until_ms: int
    noticed_at_ms: int

    def __str__(self) -> str:
        if not self.since_ms:
            return f"all writes confirmed until {_utc(self.until_ms)}"
        return f"the writes confirmed from {_utc(self.since_ms)} to {_utc(self.until_ms)}"


async def make_mark(client: AsyncClient) -> tuple[Mark, Mark, Mark]:
    """Make the next mark; returns the previous mark, the confirmed mark and the new mark.

    Raises:
        RedisError: Redis does not answer or refuses the write, for example because it is full.
    """
    answer = await run(client, Call(load("make_mark"), [keys.MARKS], []))
    numbers = [int(each or 0) for each in answer]
    made = Mark(*numbers[4:])
    confirmed: Any = {"confirmed_count": made.count, "confirmed_at_ms": made.at_ms}
    await cast(Any, client.hset(keys.MARKS, mapping=confirmed))
    return Mark(*numbers[:2]), Mark(*numbers[2:4]), made


def mark_loss(client: Client, until_ms: float) -> None:
    """Have the next controller detect that Redis was emptied; for a worker, as no controller may be running.

    A controller that runs remembers more, and any mark it has made since stays.

    Args:
        until_ms: The last time at which Redis is known to have had its data, Redis's clock.

    Raises:
        RedisError: Redis does not answer or refuses the write.
    """
    if client.hsetnx(keys.MARKS, "confirmed_count", 1):
        client.hset(keys.MARKS, "confirmed_at_ms", int(until_ms))


async def record_loss(client: AsyncClient, loss: Loss, ttl_ms: int) -> None:
    """Record a loss for `modelyard doctor`."""
    await client.set(keys.LOSS, msgspec.json.encode(loss), px=ttl_ms)


def decode(data: bytes) -> Loss | None:
    """The recorded loss; None if it is unreadable."""
    try:
        return msgspec.json.decode(data, type=Loss)
    except msgspec.MsgspecError:
        return None


def _utc(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
