"""Writes data again that Redis confirmed and then lost; the replay buffer of a controller calls it.

Existing data is left unchanged, so every operation is idempotent. All of these jobs were accepted before, so they are
written even if Redis is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from app.ledger import commands
from app.ledger.commands import Accept, RestoreOutcome
from app.ledger.ids import JobRef
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import run

CancelAnswer = Literal["unknown", "finished", "cancelled"]


class Replay:
    """The write operations. Each may raise `LedgerUnavailableError`, and `WireError` if a key holds foreign data.

    Args:
        client: Asynchronous Redis client that returns bytes.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def batch(self, accept: Accept) -> bool:
        """Accept a batch again; True if Redis had lost it."""
        with ledger_errors():
            await self._list(accept.webhooks())
            return bool(await run(self._client, accept.call_again()))

    async def outcome(self, outcome: RestoreOutcome, ttl_ms: int) -> bool:
        """Write an announced outcome and its batch's record again with this time to live; True if it was lost."""
        with ledger_errors():
            await self._list(outcome.webhooks)
            return bool(await run(self._client, outcome.call(ttl_ms)))

    async def cancel(self, ref: JobRef, queue: str) -> CancelAnswer:
        """Cancel a job again, even if a worker has claimed it since."""
        with ledger_errors():
            answer = cast(bytes, await run(self._client, commands.cancel_again(ref, queue)))
        return cast(CancelAnswer, answer.decode())

    async def _list(self, webhooks: Mapping[str, int]) -> None:
        if webhooks:
            await self._client.zadd(keys.WEBHOOKS, dict(webhooks))
