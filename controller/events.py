"""The two batch events for observers: *accepted* and *completed*.

`dispatch` notifies its observers (metrics, wait estimate, replay buffer) after the callers are answered. An observer is
a method that takes one of these events; it must not raise and must not modify the event.
"""

from __future__ import annotations

import msgspec

from app.ledger.commands import Accept
from app.ledger.wire import BatchHead, BatchOutcome
from app.server_errors import INPUT_CODES


class Accepted(msgspec.Struct, frozen=True):
    """Redis has confirmed a batch.

    Attributes:
        accept: The command that wrote the batch.
        took_s: Seconds from sending the batch to its acceptance.
    """

    accept: Accept
    took_s: float


class Completed(msgspec.Struct, frozen=True):
    """The outcome of an accepted batch has arrived.

    Attributes:
        heard_at_s: Time of arrival, `time.monotonic()`.
        all_received: Whether every caller received the outcome, so that no caller has to read it later.
    """

    batch_id: str
    head: BatchHead
    outcome: BatchOutcome
    heard_at_s: float
    all_received: bool

    @property
    def n_version_failures(self) -> int:
        """Jobs that failed; not those whose input was refused, which tells nothing about the version."""
        return sum(job.status == "failed" and job.error_code not in INPUT_CODES for job in self.outcome.jobs)
