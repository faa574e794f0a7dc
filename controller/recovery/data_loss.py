"""Detects that Redis lost confirmed data, and reports it: log, metric, and a record for `modelyard doctor`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from app.ledger import marks
from app.ledger.marks import Loss, Mark
from app.redis.client import AsyncClient, ledger_errors
from app.server_errors import LedgerUnavailableError, WireError
from controller.recovery.replay_buffer import KEEP_S

logger = logging.getLogger(__name__)


class LossWatch:
    """Makes a mark each heartbeat, and compares the stored mark with the confirmed one.

    Args:
        client: Asynchronous Redis client that returns bytes.
        retention_s: Retention of outcomes in seconds; a loss is recorded as long.
        on_loss: Called for each loss that no controller can restore.
        keep_s: Seconds for which controllers keep copies.
    """

    def __init__(
        self,
        client: AsyncClient,
        interval_s: float,
        retention_s: float,
        on_loss: Callable[[], None],
        keep_s: float = KEEP_S,
    ) -> None:
        self._client = client
        self._interval_s = interval_s
        self._retention_ms = int(retention_s * 1000)
        self._on_loss = on_loss
        self._keep_s = keep_s
        self._confirmed = Mark()

    async def run(self) -> None:
        """Check each heartbeat until cancelled. While Redis is unreachable or full, there is no mark to compare."""
        while True:
            try:
                await self.look()
            except (LedgerUnavailableError, WireError) as error:
                logger.debug("the mark against data loss was not written: %s", error.detail)
            except Exception:
                logger.exception("the mark against data loss was not written; retrying each heartbeat")
            await asyncio.sleep(self._interval_s)

    async def look(self) -> None:
        """Check once.

        Raises:
            LedgerUnavailableError: Redis does not answer, or refuses.
            WireError: Another program has written to the marks.
        """
        with ledger_errors():
            stands, confirmed, made = await marks.make_mark(self._client)
            # The controller's memory reveals an emptied Redis; Redis's second copy reveals a loss before this start.
            known, self._confirmed = max(self._confirmed, confirmed), made
            if stands.count >= known.count or known.at_ms - stands.at_ms <= self._keep_s * 1000:
                return
            self._on_loss()
            lost = Loss(stands.at_ms, known.at_ms, made.at_ms)
            logger.error(
                "Redis lost %s; jobs accepted in that time are unknown, except those of the last %g s, which "
                "are replayed. Check its persistence with `modelyard doctor`",
                lost,
                self._keep_s,
            )
            await marks.record_loss(self._client, lost, self._retention_ms)
