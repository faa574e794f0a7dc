"""Writing again what Redis confirmed and then lost; the replay buffer of a controller calls it.

What is still there is left as it is, so all of this may be done twice. All of it was accepted, so a full Redis takes
it as well.
"""

from __future__ import annotations

from typing import Literal, cast

from app.ledger import commands
from app.ledger.commands import Accept, RestoreOutcome
from app.ledger.ids import JobRef
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import run

CancelAnswer = Literal["unknown", "finished", "cancelled"]


class Replay:
    """Each call may raise `LedgerUnavailableError`, and `WireError` where a key holds something else.

    Args:
        client: Asynchronous Redis client that answers bytes.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def batch(self, accept: Accept) -> bool:
        """Accept a batch again; True if Redis had lost it."""
        with ledger_errors():
            return bool(await run(self._client, accept.call_again()))

    async def outcome(self, outcome: RestoreOutcome, ttl_ms: int) -> bool:
        """Write an announced outcome and its batch's record again, to live for so long; True if it was lost."""
        with ledger_errors():
            return bool(await run(self._client, outcome.call(ttl_ms)))

    async def cancel(self, ref: JobRef, queue: str) -> CancelAnswer:
        """Cancel a job, even one that a worker has claimed meanwhile."""
        with ledger_errors():
            answer = cast(bytes, await run(self._client, commands.cancel_again(ref, queue)))
        return cast(CancelAnswer, answer.decode())
