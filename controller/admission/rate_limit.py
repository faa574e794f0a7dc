"""The rate limit of predictions per client, across all controllers; off unless configured.

A prediction is one sample. A refused input counts as one prediction, because it costs the controller as much.

The library `limits` keeps the count in Redis as a sliding window. The previous window counts in part, so a client
cannot send twice as many at the boundary of two windows. Other requests about jobs are not counted.
"""

from __future__ import annotations

import time

from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.server_errors import RateLimitError, TooLargeError
from controller.admission.audit_log import Client
from controller.admission.authentication import Caller

KNOWN_CLIENTS = 10_000  # maximum number of remembered clients that have used up their limit


class RateLimit:
    """The configured rate limit.

    A client that has used up its limit is refused before its request is read and without asking Redis, until there is
    room for one sample.

    Args:
        limit: A limit such as `100/second`.
        client: Asynchronous Redis client; its connections are used.
    """

    def __init__(self, limit: str, client: AsyncClient) -> None:
        # Imported here: the import takes 0.2 s, and most controllers have no limit.
        from limits import parse
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import SlidingWindowCounterRateLimiter

        self._text = limit
        self._item = parse(limit)
        self._storage = RedisStorage(
            "async+redis://",
            implementation="redispy",
            key_prefix=keys.RATE,
            connection_pool=client.connection_pool,  # type: ignore[arg-type]
        )
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._used_up_until_s: dict[str, float] = {}

    def check(self, caller: Caller, client: Client) -> None:
        """Refuse a client that is known to have used up its limit.

        Raises:
            RateLimitError: The client has used up its limit.
        """
        until_s = self._used_up_until_s.get(_name(caller, client))
        if until_s is not None and (left_s := until_s - time.monotonic()) > 0:
            raise self._refusal(left_s)

    async def count(self, caller: Caller, client: Client, n_samples: int) -> None:
        """Count the samples of a request.

        Raises:
            RateLimitError: The client is over its limit; the error says when there is room for this request.
            TooLargeError: The request is larger than the limit.
            LedgerUnavailableError: Redis does not answer.
        """
        who = _name(caller, client)
        if n_samples > self._item.amount:
            raise TooLargeError(
                f"the request has {n_samples} samples, but the rate limit is {self._text} samples; send fewer "
                f"per request"
            )
        with ledger_errors():
            if await self._limiter.hit(self._item, who, cost=n_samples):
                return
            window = await self._storage.get_sliding_window(self._item.key_for(who), self._item.get_expiry())
        amount, length_s = self._item.amount, self._item.get_expiry()
        if len(self._used_up_until_s) >= KNOWN_CLIENTS:
            self._used_up_until_s.clear()
        self._used_up_until_s[who] = time.monotonic() + _until_room_s(amount - 1, length_s, *window)
        raise self._refusal(_until_room_s(amount - n_samples, length_s, *window))

    def _refusal(self, after_s: float) -> RateLimitError:
        return RateLimitError(
            f"the client exceeds its rate limit of {self._text} samples; try again later, or send fewer samples",
            retry_after_s=max(1.0, after_s),
        )


def _until_room_s(
    most: int, length_s: float, before: int, before_left_s: float, now: int, now_left_s: float
) -> float:
    """Seconds until the weighted count falls to the given number of samples, if the client sends nothing more.

    Args:
        length_s: Length of a window. The weight of a past window is the remaining fraction of `length_s`.
        before: Samples of the previous window; its weight is zero after `before_left_s`.
        now: Samples of the current window; its weight is zero after `now_left_s`.
    """
    if now > most:
        return max(0.0, now_left_s - (most + 1) * length_s / now)
    return max(0.0, before_left_s - (most + 1 - now) * length_s / before) if before else 0.0


def _name(caller: Caller, client: Client) -> str:
    # Without keys a client is identified by its connection's address, because anyone can forge a header.
    return caller.name or (f"@{client[0]}" if client else "@")
