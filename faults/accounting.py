"""Outcomes of many jobs, read from Redis in bulk instead of one by one over HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from app.ledger import wire
from app.redis import keys

AT_ONCE = 500


@dataclass(frozen=True)
class End:
    """One accepted job and its end. Times are Redis's clock.

    Attributes:
        status: The API's status; `open` without an outcome.
        lives_ms: Time from its arrival to its deadline.
        took_ms: Time from its arrival to its outcome.
        batch_jobs: Jobs in its batch.
    """

    status: str
    received_at_ms: float
    lives_ms: float
    took_ms: float
    batch_jobs: int

    @property
    def is_good(self) -> bool:
        """Whether it succeeded within its deadline."""
        return self.status == "succeeded" and self.took_ms <= self.lives_ms


def ends(client: Any, queue: str, since_ms: float) -> list[End]:
    """Every job of a queue that arrived at `since_ms` or later."""
    found: list[End] = []
    names = client.scan_iter(keys.batch("*"), count=AT_ONCE)
    while some := list(islice(names, AT_ONCE)):
        pipe = client.pipeline(transaction=False)
        for name in some:
            pipe.hmget(name, "head", "out")
        for head, out in pipe.execute():
            if head:
                found += _ends(wire.decode_head(head), wire.decode_outcome(out) if out else None, queue)
    return [end for end in found if end.received_at_ms >= since_ms]


def _ends(head: wire.BatchHead, outcome: wire.BatchOutcome | None, queue: str) -> list[End]:
    if head.queue != queue:
        return []
    statuses = [own.status for own in outcome.jobs] if outcome else ["open"] * len(head.jobs)
    ended_at_ms = outcome.finished_at_ms if outcome else 0.0
    return [
        End(
            status,
            job.received_at_ms,
            job.deadline_ms - job.received_at_ms,
            ended_at_ms - job.received_at_ms,
            len(head.jobs),
        )
        for status, job in zip(statuses, head.jobs, strict=True)
    ]
