"""The worker's side of the ledger: claim a batch, record progress, write the outcomes.

To take a batch is to pop its message from the queue and to claim it, in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from app.clock import to_ms
from app.ledger import commands, ids, wire
from app.ledger.wire import BatchHead, BatchOutcome, JobOutcome
from app.redis import keys
from app.redis.client import Client, ledger_errors
from app.redis.script import Call, run_now
from app.redis.script_connection import ScriptConnection
from app.server_errors import NewerWireError, WireError

SAMPLES = commands.SAMPLES.encode()
WAIT_GRACE_S = 0.5  # Redis may end a blocking wait 0.1 s late


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedBatch:
    """A batch that this worker has claimed.

    Attributes:
        attempts: Number of claims, including this one.
        claimed_at_ms: Time of the claim, Redis's clock.
        cancelled: Indexes of the cancelled jobs.
        deaths: By index, number of worker deaths while this job ran alone.
        kept: By index, outcomes of jobs that ran alone under an earlier claim.
    """

    batch_id: str
    head: BatchHead
    data: bytes
    attempts: int
    claimed_at_ms: float
    cancelled: frozenset[int]
    deaths: Mapping[int, int] = field(default_factory=dict)
    kept: Mapping[int, JobOutcome] = field(default_factory=dict)


class WorkerLedger:
    """The worker's side of the ledger.

    Args:
        client: Synchronous Redis client that returns bytes.
        worker_id: The worker's own id.
        queue: The worker's own queue.
        retention_s: Retention of outcomes in seconds.
        failed_heartbeats: Returns how many heartbeats failed: after each, this connection may be half-open as well.

    Attributes:
        worker_id: The worker's own id.
        taken: Id of the batch that was taken, and runs next; or None.
    """

    def __init__(
        self,
        client: Client,
        worker_id: str,
        queue: str,
        retention_s: float,
        failed_heartbeats: Callable[[], int] | None = None,
    ) -> None:
        self.taken: str | None = None
        self._taken_fields: list[bytes] = []
        self._client = client
        self._scripts = ScriptConnection(client)
        self.worker_id = worker_id
        self._queue = queue
        self._retention_ms = int(retention_s * 1000)
        self._failed_heartbeats = failed_heartbeats
        self._heard_failures = 0

    def claim(self, batch_id: str) -> ClaimedBatch | None:
        """Claim a batch; None if it has an outcome, is missing, or belongs to another worker.

        The batch in `taken` already belongs to this worker and costs no round trip.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            NewerWireError: The record is of a newer release; it stays for a worker that can read it.
            WireError: The record is unreadable; its jobs have failed.
        """
        taken, self.taken = self.taken, None
        if self._failed_heartbeats and self._heard_failures != (failed := self._failed_heartbeats()):
            self._heard_failures = failed
            self._client.connection_pool.disconnect()  # it may be half-open, and finding out would cost a timeout
        try:
            if batch_id == taken:
                fields = self._taken_fields
            else:
                fields = self._scripts.run(commands.claim(batch_id, self._queue, self.worker_id))
            return self._read(batch_id, fields) if fields else None
        except NewerWireError:
            with ledger_errors():
                self._run(commands.release(batch_id, self._queue, self.worker_id))
            raise
        except WireError:
            self.close_unreadable(batch_id)
            raise

    def _read(self, batch_id: str, flat: list[bytes]) -> ClaimedBatch | None:
        """Read the record of a claimed batch: its fields and values in turn, and the time of the claim."""
        *pairs, seconds, microseconds = flat
        fields: dict[bytes, bytes] = dict(zip(pairs[::2], pairs[1::2], strict=True))
        cancelled: list[int] = []
        deaths: dict[int, int] = {}
        kept: dict[int, JobOutcome] = {}
        try:
            data, attempts = fields.pop(SAMPLES), int(fields.pop(b"attempts"))
            head = wire.decode_head(fields.pop(b"head"))
            if head.queue != self._queue or len(head.jobs) != ids.n_jobs(batch_id):
                raise WireError("the record's head belongs to another batch")
            n_pieces = 0
            for name, value in fields.items():
                kind, _, index = name.partition(b":")
                if kind == b"p":
                    n_pieces += 1
                elif kind == b"c":
                    cancelled.append(int(index))
                elif kind == b"x":
                    deaths[int(index)] = int(value)
                elif kind == b"o":
                    kept[int(index)] = wire.decode_job_outcome(value)
        except (KeyError, ValueError) as error:
            raise WireError(f"the record lacks a field or has an invalid value: {error}") from None
        if not data:  # too large for the script
            names = [*(f"{commands.PIECE}{index}" for index in range(n_pieces)), commands.SAMPLES]
            record = keys.batch(batch_id)
            pieces = [self._scripts.command("HGET", record, name) for name in names]
            if None in pieces:  # Redis has lost it since, or another worker got the batch and finished it
                return None
            data = b"".join(pieces)
        return ClaimedBatch(
            batch_id=batch_id,
            head=head,
            data=data,
            attempts=attempts,
            claimed_at_ms=to_ms(int(seconds), int(microseconds)),
            cancelled=frozenset(cancelled),
            deaths=deaths,
            kept=kept,
        )

    def close_unreadable(self, batch_id: str) -> bool:
        """Close an unreadable batch that is unclaimed or held by this worker; True if it was open.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        if not ids.is_well_formed(batch_id):
            return False
        fields: list[bytes] = []
        with suppress(WireError), ledger_errors():
            fields = cast(list[bytes], self._client.hkeys(keys.batch(batch_id)))
        with ledger_errors():
            number = int(cast(bytes | None, self._client.hget(keys.NUMBERS, self._queue)) or 0)
            now_ms = to_ms(*self._client.time())
            call = commands.close_unreadable(
                batch_id, self._queue, number, self.worker_id, fields, now_ms, self._retention_ms
            )
            return bool(self._run(call))

    def _run(self, call: Call) -> Any:
        # Not on the ledger's own connection: the watchdog thread that ends a stuck process calls this, too.
        return run_now(self._client, call)

    def progress(
        self, batch: ClaimedBatch, next_index: int | None, done: tuple[int, JobOutcome] | None
    ) -> bool:
        """Record which job runs alone next (None for none), and the outcome of the previous one.

        Returns:
            False if the claim was revoked in the meantime; the job must not run then.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        call = commands.progress(batch.batch_id, self._queue, self.worker_id, next_index, done)
        with ledger_errors():
            return bool(self._run(call))

    def finish(
        self,
        batch: ClaimedBatch,
        outcome: BatchOutcome,
        quarantined: Mapping[int, bytes] | None = None,
        *,
        take: bool = False,
    ) -> bool:
        """Write a batch's outcome and notify its controller; False if the claim was revoked in the meantime.

        Args:
            quarantined: Samples of the quarantined jobs, by index; kept as long as the outcome.
            take: Whether to take the next batch from the queue as well; its id is then in `taken`.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        if batch.head.rerouted_from:  # its controller knows the head of the first version only
            outcome = msgspec.structs.replace(outcome, head=wire.encode(batch.head))
        call = commands.finish_and_take(
            batch.batch_id, batch.head, self.worker_id, outcome, self._retention_ms, quarantined, take=take
        )
        written, *taken = self._scripts.run(call)
        self._note_taken(taken[0] if taken else None)
        return bool(written)

    def take(self, limit_s: float = 0) -> None:
        """Take the next batch from the queue, if the next message belongs to a batch; its id is then in `taken`.

        Args:
            limit_s: Seconds to wait for a message.

        Raises:
            LedgerUnavailableError: Redis does not answer.
        """
        call = commands.take(self._queue, self.worker_id)
        if limit_s <= 0:
            self._note_taken(self._scripts.run(call))
            return
        at_least_s = max(limit_s, 0.01)  # Redis 6.2 waits for ever if the timeout is 1 ms
        # From the queue's tail to its tail: BLMOVE returns the message without removing it. If the connection is lost
        # after the script has claimed a batch, the script that is sent again finds that batch.
        wait = ("BLMOVE", self._queue, self._queue, "RIGHT", "RIGHT", at_least_s)
        self._note_taken(self._scripts.run_after(wait, at_least_s + WAIT_GRACE_S, call))

    def _note_taken(self, answer: list[bytes] | None) -> None:
        *self._taken_fields, batch_id = answer or [b""]  # as `claim` replies, and the id last
        self.taken = batch_id.decode() or None


def keep_outcome(client: Client, batch_id: str, index: int, outcome: JobOutcome) -> None:
    """Record the outcome of a job that hung in the process before this one: it counts when the batch is claimed again.

    Raises:
        LedgerUnavailableError: Redis does not answer.
    """
    with ledger_errors():
        run_now(client, commands.keep_outcome(batch_id, index, outcome))
