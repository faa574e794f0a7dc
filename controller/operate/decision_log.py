"""The log of decisions in Redis: what was decided about versions, by whom, when and why.

Routing changes have a list of their own, so that a version that comes and goes does not push out operators' decisions.
"""

from __future__ import annotations

import logging
from typing import cast

import msgspec

from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from modelyard.schemas import Decision

logger = logging.getLogger(__name__)
MOST_KEPT = 1000  # of each list
CHOSEN = "chosen"  # the kind of a routing change

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Decision).decode


class DecisionLog:
    """Adds and lists decisions; the newest `MOST_KEPT` of each list are kept."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def add(self, decision: Decision) -> None:
        """Add one.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        name = f"{decision.model_name} {decision.model_version or ''}".rstrip()
        by = f" by {decision.by}" if decision.by else ""
        why = f": {decision.reason}" if decision.reason else ""
        logger.info("%s is %s%s%s", name, decision.kind, by, why)
        key = keys.ROUTING_CHANGES if decision.kind == CHOSEN else keys.DECISIONS
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.zadd(key, {_encode(decision): decision.at_ms})
            pipe.zremrangebyrank(key, 0, -MOST_KEPT - 1)
            await pipe.execute()

    async def newest(self, limit: int) -> list[Decision]:
        """The newest of both lists first; unreadable ones are left out.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        found = await self._read(keys.DECISIONS, limit) + await self._read(keys.ROUTING_CHANGES, limit)
        return sorted(found, key=lambda each: each.at_ms, reverse=True)[:limit]

    async def routing_changes(self) -> list[Decision]:
        """All that are kept, the newest first.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        return await self._read(keys.ROUTING_CHANGES, MOST_KEPT)

    async def _read(self, key: str, limit: int) -> list[Decision]:
        with ledger_errors():
            rows = cast(list[bytes], await self._client.zrevrange(key, 0, limit - 1))
        found = []
        for row in rows:
            try:
                found.append(_decode(row))
            except msgspec.DecodeError as error:
                logger.warning("an entry of the log of decisions cannot be read: %s", error)
        return found
