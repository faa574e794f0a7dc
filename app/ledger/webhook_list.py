"""The list of webhooks to be delivered: which job is looked at next. Any controller may do it.

A job with a webhook is listed before its batch is accepted, so that no webhook is lost with a controller. A leased
entry stays in the list, due when its lease ends: if its controller dies, another one leases it then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from app.ledger import ids
from app.ledger.ids import JobRef
from app.redis import keys
from app.redis.client import AsyncClient, ledger_errors
from app.redis.script import Call, Value, load, run
from modelyard.schemas import WebhookState

ENDED = 0  # the place of jobs that are known to have ended: before those that may have
FIRST_LOOK_MS = 2000  # after acceptance; the controller that hears of the outcome is faster

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(WebhookState).decode


def entries(batch_id: str, callbacks: Mapping[int, str], at_ms: float) -> dict[str, int]:
    """The entries of a batch's jobs with webhooks: when each is looked at next, by job id."""
    return dict.fromkeys([ids.job_id(batch_id, index) for index in callbacks], int(at_ms))


def read_state(url: str, data: bytes | None) -> WebhookState:
    """The state of a webhook; that of one without an attempt if there is none, or it is unreadable."""
    try:
        return _decode(data or b"")
    except msgspec.DecodeError:
        return WebhookState(url=url, status="pending")


class WebhookList:
    """The list. Each method may raise `LedgerUnavailableError`.

    Args:
        client: Asynchronous Redis client that returns bytes.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def make_due(self, job_ids: Iterable[str]) -> None:
        """Make jobs due that have ended."""
        with ledger_errors():
            await self._client.zadd(keys.WEBHOOKS, dict.fromkeys(job_ids, ENDED))

    async def lease(self, now_ms: float, lease_end_ms: int, most: int) -> list[str]:
        """Lease jobs that are due, the longest due first."""
        call = Call(load("lease_webhooks"), [keys.WEBHOOKS], [now_ms, lease_end_ms, most])
        with ledger_errors():
            return [job_id.decode("ascii", "replace") for job_id in await run(self._client, call)]

    async def postpone(self, lease_end_ms: int, looks_ms: Mapping[str, float]) -> None:
        """Return leased jobs, each to be looked at again at its time."""
        args: list[Value] = [lease_end_ms]
        for job_id, at_ms in looks_ms.items():
            args += [job_id, int(at_ms)]
        with ledger_errors():
            await run(self._client, Call(load("postpone_webhooks"), [keys.WEBHOOKS], args))

    async def note(self, ref: JobRef, state: WebhookState) -> None:
        """Note an attempt: the job is looked at again at its next attempt, or no longer."""
        next_ms = "" if state.next_attempt_at_ms is None else int(state.next_attempt_at_ms)
        names = [keys.batch(ref.batch_id), keys.WEBHOOKS]
        args: list[Value] = [ids.job_id(ref.batch_id, ref.index), f"w:{ref.index}", _encode(state), next_ms]
        with ledger_errors():
            await run(self._client, Call(load("note_webhook"), names, args))

    async def drop(self, job_ids: Iterable[str]) -> None:
        """Remove jobs."""
        with ledger_errors():
            await self._client.zrem(keys.WEBHOOKS, *job_ids)
