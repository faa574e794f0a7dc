"""How many predictions a client may ask for in a time, over all controllers; off unless the settings say so.

The count is kept in Redis by the library `limits`, as a sliding window: the window before counts in part, so a client
cannot ask for twice as many around the turn of a second. What a client does with its jobs afterwards is not counted.
"""

from __future__ import annotations

import time

import redis.asyncio
from starlette.types import Scope

from app import keys
from app.errors import RateLimitError
from app.ledger import ledger_errors
from controller.access import Caller


class RateLimit:
    """The limit of the settings.

    Args:
        limit: Such as `100/second`.
        client: Asynchronous Redis client, whose connections are used.
    """

    def __init__(self, limit: str, client: redis.asyncio.Redis) -> None:
        # Here, as it takes a fifth of a second and most controllers need none.
        from limits import parse
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import SlidingWindowCounterRateLimiter

        self._text = limit
        self._item = parse(limit)
        storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=keys.RATE,
            connection_pool=client.connection_pool,  # type: ignore[arg-type]
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def check(self, caller: Caller, scope: Scope) -> None:
        """Count a request.

        Raises:
            RateLimitError: Its client has asked too often.
            LedgerUnavailableError: Redis does not answer.
        """
        who = caller.name or _address(scope)
        with ledger_errors():
            if await self._limiter.hit(self._item, who):
                return
            stats = await self._limiter.get_window_stats(self._item, who)
        raise RateLimitError(
            f"more than {self._text} predictions asked for; ask less often, or put several samples in one request",
            retry_after_s=max(1.0, stats.reset_time - time.time()),
        )


def _address(scope: Scope) -> str:
    # Without keys a client is its address, as the connection has it: whatever a header says anyone can say.
    client = scope.get("client")
    return f"@{client[0]}" if client else "@"
