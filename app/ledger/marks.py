"""Data that Redis confirmed and lost: how that is noticed, and the note of it for `modelyard doctor`.

Each controller makes a mark in Redis every heartbeat: a count that only grows, written by a script as the ledger's
records are. A Redis that comes back with a lower count has lost what it wrote since. A plain command repeats the
count, which a loss of transactions alone does not take along: so controllers that were started since know, too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from app.redis import keys
from app.redis.client import AsyncClient
from app.redis.script import Call, load, run


class Mark(msgspec.Struct, frozen=True, order=True):
    """One mark.

    Attributes:
        count: How many there were before, and this one.
        at_ms: When it was made, Redis's clock.
    """

    count: int = 0
    at_ms: int = 0


class Loss(msgspec.Struct, frozen=True):
    """One loss; as a string, in words. Times are milliseconds of Redis's clock.

    Attributes:
        since_ms: What was written before is there; 0 where nothing is.
        until_ms: The last time that Redis is known to have had all.
        noticed_at_ms: When a controller noticed.
    """

    since_ms: int
    until_ms: int
    noticed_at_ms: int

    def __str__(self) -> str:
        if not self.since_ms:
            return f"all writes confirmed until {_utc(self.until_ms)}"
        return f"the writes confirmed from {_utc(self.since_ms)} to {_utc(self.until_ms)}"


async def make_mark(client: AsyncClient) -> tuple[Mark, Mark, Mark]:
    """Make the next mark; answers the one that stood there, the one that was confirmed, and the new one.

    Raises:
        RedisError: Redis does not answer, or refuses, as when it is full.
    """
    answer = await run(client, Call(load("make_mark"), [keys.MARKS], []))
    numbers = [int(each or 0) for each in answer]
    made = Mark(*numbers[4:])
    confirmed: Any = {"confirmed_count": made.count, "confirmed_at_ms": made.at_ms}
    await cast(Any, client.hset(keys.MARKS, mapping=confirmed))
    return Mark(*numbers[:2]), Mark(*numbers[2:4]), made


async def note(client: AsyncClient, loss: Loss, ttl_ms: int) -> None:
    """Note a loss for the doctor."""
    await client.set(keys.LOSS, msgspec.json.encode(loss), px=ttl_ms)


def decode(data: bytes) -> Loss | None:
    """The noted loss; None where it cannot be read."""
    try:
        return msgspec.json.decode(data, type=Loss)
    except msgspec.MsgspecError:
        return None


def _utc(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
