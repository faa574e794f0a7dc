"""The two events of a batch that others than its callers learn of: *accepted* and *completed*.

`dispatch` tells its observers (metrics, wait estimate, replay buffer) after the callers have their answers. An observer
is a method that takes one of these; it must not raise, and may not change what it is told.
"""

from __future__ import annotations

import msgspec

from app.ledger.commands import Accept
from app.ledger.wire import BatchHead, BatchOutcome


class Accepted(msgspec.Struct, frozen=True):
    """Redis has confirmed a batch.

    Attributes:
        accept: What was written.
        took_s: Seconds from the closing of the batch to its acceptance.
    """

    accept: Accept
    took_s: float


class Completed(msgspec.Struct, frozen=True):
    """The outcome of an accepted batch has come.

    Attributes:
        heard_at_s: When, `time.monotonic()`.
        all_told: Whether every caller was given the outcome of the job, so that none was promised one.
    """

    batch_id: str
    head: BatchHead
    outcome: BatchOutcome
    heard_at_s: float
    all_told: bool
