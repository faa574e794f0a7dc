"""The ledger under any sequence of changes: the backlog stays exact, and an outcome is written once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import cast

import redis
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from app.ledger import wire
from app.ledger.commands import Accept, NewBatch, RestoreOutcome
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.ids import JobRef
from app.ledger.replay import Replay
from app.ledger.wire import BatchOutcome
from app.ledger.worker_ledger import ClaimedBatch, WorkerLedger
from app.redis import keys
from app.server_errors import JobNotCancellableError, UnknownJobError
from tests.pool_samples import RedisServer, accept, head, new_batch, outcome

QUEUE = head().queue
WORKERS = ("anna", "bert")
RETENTION_S = 100.0


def message(batch_id: str) -> bytes:
    """As much of a stored message as names its batch."""
    return b'{"correlation_id": "%s"}' % batch_id.encode()


@dataclass
class Expected:
    """What the ledger should know of one batch."""

    new: NewBatch
    n_jobs: int
    cancelled: set[int] = field(default_factory=set)
    owner: str = ""
    attempts: int = 0
    outcome: BatchOutcome | None = None
    quarantined: bool = False
    lost: bool = False
    forgotten: bool = False

    @property
    def unfinished(self) -> bool:
        return self.outcome is None and not self.forgotten

    @property
    def waits_or_runs(self) -> bool:
        return self.unfinished and not self.lost


class LedgerMachine(RuleBasedStateMachine):
    """Every script in any order, by two workers and a controller, beside a plain model of it."""

    accepted: Bundle[Expected] = Bundle("accepted")
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.client = redis.Redis.from_url(self.url)
        self.client.flushall()
        self.async_client = redis.asyncio.Redis.from_url(self.url)
        self.controller = ControllerLedger(self.async_client, RETENTION_S)
        self.replay = Replay(self.async_client)
        self.workers = {name: WorkerLedger(self.client, name, QUEUE, RETENTION_S) for name in WORKERS}
        self.batches: list[Expected] = []
        self.running: list[tuple[str, ClaimedBatch, Expected]] = []
        self.messages: list[Expected] = []

    def teardown(self) -> None:
        self.runner.run(self.async_client.aclose())
        self.runner.close()
        self.client.close()

    # From 2,048 on samples are fetched by themselves, and from 40,000 on they are in pieces.
    @rule(target=accepted, n_jobs=st.integers(1, 3), times=st.sampled_from((1, 2048, 40_000)))
    def accept(self, n_jobs: int, times: int) -> Expected:
        made = new_batch(n_jobs)
        data = made.data * times
        batch = Expected(replace(made, data=data, message=message(made.batch_id)), n_jobs)
        self.runner.run(accept(self.async_client, batch.new, retention_s=RETENTION_S))
        self.batches.append(batch)
        self.messages.append(batch)
        return batch

    @rule(batch=accepted)
    @precondition(lambda self: not any(each.lost for each in self.batches))
    def accept_the_same_again(self, batch: Expected) -> None:
        self.runner.run(accept(self.async_client, batch.new, retention_s=RETENTION_S))

    @rule(batch=accepted)
    @precondition(lambda self: not any(each.lost for each in self.batches))
    def accept_again_as_after_a_loss(self, batch: Expected) -> None:
        written = self.runner.run(self.replay.batch(Accept.of(batch.new, 1)))
        assert not written

    @rule(batch=accepted, name=st.sampled_from(WORKERS))
    def claim(self, batch: Expected, name: str) -> None:
        claimed = self.workers[name].claim(batch.new.batch_id)
        assert bool(claimed) == (batch.waits_or_runs and batch.owner in ("", name))
        if claimed:
            batch.owner, batch.attempts = name, batch.attempts + 1
            assert (claimed.head, claimed.data) == (batch.new.head, batch.new.data)
            assert (claimed.attempts, claimed.cancelled) == (batch.attempts, batch.cancelled)
            self.running.append((name, claimed, batch))

    def check_taken(self, name: str, batch: Expected | None) -> None:
        """Hold the batch that a worker should have taken against what it did take."""
        worker = self.workers[name]
        assert worker.taken == (batch and batch.new.batch_id)
        if batch and (claimed := worker.claim(batch.new.batch_id)):
            batch.owner = name
            assert (claimed.head, claimed.data) == (batch.new.head, batch.new.data)
            assert (claimed.attempts, claimed.cancelled) == (batch.attempts, batch.cancelled)
            self.running.append((name, claimed, batch))

    def take_next(self, name: str) -> Expected | None:
        """The batch that is taken off the queue now: the one that is next, if the worker may have it."""
        batch = self.messages[0] if self.messages else None
        if batch is None or not batch.waits_or_runs or batch.owner not in ("", name):
            return None
        batch.attempts += 1
        return self.messages.pop(0)

    @rule(name=st.sampled_from(WORKERS))
    def take(self, name: str) -> None:
        """A worker that has no running batch takes what is its own already, else the next."""
        own = [batch for batch in self.batches if batch.waits_or_runs and batch.owner == name]
        self.workers[name].take()
        taken = self.workers[name].taken
        expected = next((batch for batch in own if batch.new.batch_id == taken), None)
        assert bool(expected) == bool(own)
        self.check_taken(name, expected or self.take_next(name))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), take=st.booleans())
    def finish(self, data: st.DataObject, take: bool) -> None:
        position = data.draw(st.integers(0, len(self.running) - 1))
        name, claimed, batch = self.running[position]
        result = outcome(batch.n_jobs, worker_id=name)
        quarantined = {0: claimed.data[:8]} if data.draw(st.booleans()) else None
        written = self.workers[name].finish(claimed, result, quarantined, take=take)
        assert written == (batch.waits_or_runs and batch.owner == name)
        if batch.owner == name:
            batch.owner = ""
        if written:
            batch.outcome = result
            batch.quarantined = quarantined is not None
        self.check_taken(name, self.take_next(name) if written and take else None)

    @rule(batch=accepted, index=st.integers(0, 2))
    def cancel(self, batch: Expected, index: int) -> None:
        index %= batch.n_jobs
        ref = JobRef(batch.new.batch_id, index)
        expected: type[Exception] | None = None
        if batch.lost:
            expected = UnknownJobError
        elif batch.outcome or batch.owner:
            expected = JobNotCancellableError
        raised: type[Exception] | None = None
        try:
            self.runner.run(self.controller.cancel(ref, batch.new.head))
        except (UnknownJobError, JobNotCancellableError) as error:
            raised = type(error)
        assert raised is expected
        if raised is None:
            batch.cancelled.add(index)

    @rule(batch=accepted, owner=st.sampled_from(("", *WORKERS)))
    def requeue(self, batch: Expected, owner: str) -> None:
        again = message(batch.new.batch_id)
        sent = self.runner.run(self.controller.requeue(batch.new.batch_id, QUEUE, owner, again))
        assert sent == (batch.waits_or_runs and batch.owner == owner)
        self.messages[:0] = [batch] * sent
        if batch.owner == owner:
            batch.owner = ""

    @rule(batch=accepted)
    def close_unclaimed(self, batch: Expected) -> None:
        result = outcome(batch.n_jobs, worker_id="")
        closed = self.runner.run(self.controller.close_unclaimed(batch.new.batch_id, batch.new.head, result))
        assert closed == (batch.waits_or_runs and not batch.owner)
        if closed:
            batch.outcome = result

    @rule(batch=accepted, who=st.sampled_from(("", *WORKERS)))
    def close_as_unreadable(self, batch: Expected, who: str) -> None:
        batch_id = batch.new.batch_id
        if who:
            closed = self.workers[who].close_unreadable(batch_id)
        else:
            closed = self.runner.run(self.controller.close_unreadable(batch_id, QUEUE, 0))
        assert closed == (batch.waits_or_runs and batch.owner in ("", who))
        if closed:
            stored = self.client.hget(keys.batch(batch_id), "out")
            assert isinstance(stored, bytes)
            batch.owner, batch.outcome = "", wire.decode_outcome(stored)
            expected = ["cancelled" if i in batch.cancelled else "failed" for i in range(batch.n_jobs)]
            assert [job.status for job in batch.outcome.jobs] == expected

    @rule(batch=accepted)
    def lose_the_record(self, batch: Expected) -> None:
        """As an expiry does, or Redis coming back with older data."""
        self.client.delete(keys.batch(batch.new.batch_id))
        batch.lost = True

    @rule(batch=accepted)
    def restore_the_outcome(self, batch: Expected) -> None:
        """As a controller does that has heard it, whatever Redis has lost of the batch."""
        result = outcome(batch.n_jobs, worker_id="heard")
        call = RestoreOutcome.of(Accept.of(batch.new, 1), result)
        written = self.runner.run(self.replay.outcome(call, 50_000))
        assert written == (batch.lost or batch.outcome is None)
        if written:
            batch.owner, batch.outcome, batch.lost, batch.forgotten = "", result, False, False

    @rule(batch=accepted, index=st.integers(0, 2))
    def cancel_again(self, batch: Expected, index: int) -> None:
        """As after a loss: a worker may have claimed the batch meanwhile."""
        index %= batch.n_jobs
        answer = self.runner.run(self.replay.cancel(JobRef(batch.new.batch_id, index), QUEUE))
        if batch.lost:
            assert answer == "unknown"
        elif batch.outcome:
            assert answer == "finished"
        else:
            assert answer == "cancelled"
            if index not in batch.cancelled:
                batch.owner = ""
            batch.cancelled.add(index)

    @rule(batch=accepted)
    def forget(self, batch: Expected) -> None:
        forgot = self.runner.run(self.controller.forget(batch.new.batch_id, QUEUE))
        assert forgot == batch.lost
        if forgot:
            batch.owner = ""
            batch.forgotten = True

    @invariant()
    def samples_are_kept_until_there_is_an_outcome(self) -> None:
        for batch in self.batches:
            fields = cast(list[bytes], self.client.hkeys(keys.batch(batch.new.batch_id)))
            kept = [name for name in fields if name == b"data" or name.startswith(b"p:")]
            assert bool(kept) == batch.waits_or_runs

    @invariant()
    def the_backlog_counts_the_jobs_without_an_outcome(self) -> None:
        unfinished = [batch for batch in self.batches if batch.unfinished]
        expected = sum(batch.n_jobs - len(batch.cancelled) for batch in unfinished)
        assert int(self.client.hget(keys.BACKLOG, QUEUE) or 0) == expected
        open_jobs = {b.new.batch_id.encode(): b"%d" % (b.n_jobs - len(b.cancelled)) for b in unfinished}
        assert self.client.hgetall(keys.open_jobs(QUEUE)) == open_jobs

    @invariant()
    def the_indexes_hold_the_batches_without_an_outcome(self) -> None:
        unfinished = {batch.new.batch_id.encode() for batch in self.batches if batch.unfinished}
        assert set(self.client.zrange(keys.pending(QUEUE), 0, -1)) == unfinished
        assert set(self.client.zrange(keys.deadlines(QUEUE), 0, -1)) == unfinished
        owners = {b.new.batch_id.encode(): b.owner.encode() for b in self.batches if b.owner}
        assert self.client.hgetall(keys.running(QUEUE)) == owners

    @invariant()
    def every_record_expires_and_holds_the_first_outcome(self) -> None:
        for batch in self.batches:
            if batch.lost:
                continue
            assert 0 < self.client.pttl(keys.batch(batch.new.batch_id)) <= (60 + RETENTION_S) * 1000
            stored = self.client.hget(keys.batch(batch.new.batch_id), "out")
            assert stored is None or isinstance(stored, bytes)
            assert (wire.decode_outcome(stored) if stored else None) == batch.outcome

    @invariant()
    def the_quarantine_lists_the_jobs_that_were_quarantined(self) -> None:
        listed = set(self.client.zrange(keys.QUARANTINE, 0, -1))
        assert listed == {f"{b.new.batch_id}.0".encode() for b in self.batches if b.quarantined}
        assert not listed or 0 < self.client.pttl(keys.QUARANTINE) <= RETENTION_S * 1000

    @invariant()
    def every_acceptance_and_every_requeue_left_one_message_until_it_was_taken(self) -> None:
        expected = [message(batch.new.batch_id) for batch in reversed(self.messages)]
        assert self.client.lrange(QUEUE, 0, -1) == expected


def test_the_ledger_is_exact_after_any_sequence_of_changes(redis_server: RedisServer) -> None:
    machine = type("Machine", (LedgerMachine,), {"url": redis_server.url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
