"""The log of decisions in Redis: who took a version out of service or put it back, when and why."""

from __future__ import annotations

import logging
from typing import cast

import msgspec

from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from modelyard.schemas import Decision

logger = logging.getLogger(__name__)
MOST_KEPT = 1000

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Decision).decode


class DecisionLog:
    """Adds and lists decisions; the newest `MOST_KEPT` are kept."""

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
        with ledger_errors():
            pipe = self._client.pipeline(transaction=False)
            pipe.zadd(keys.DECISIONS, {_encode(decision): decision.at_ms})
            pipe.zremrangebyrank(keys.DECISIONS, 0, -MOST_KEPT - 1)
            await pipe.execute()

    async def newest(self, limit: int) -> tuple[Decision, ...]:
        """The newest first; unreadable ones are left out.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        with ledger_errors():
            rows = cast(list[bytes], await self._client.zrevrange(keys.DECISIONS, 0, limit - 1))
        found = []
        for row in rows:
            try:
                found.append(_decode(row))
            except msgspec.DecodeError as error:
                logger.warning("an entry of the log of decisions cannot be read: %s", error)
        return tuple(found)
