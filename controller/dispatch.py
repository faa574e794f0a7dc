"""Sends jobs to their queues in batches and receives the outcomes.

`batching` decides when the jobs of a queue are sent and in how many batches; this module carries that out. A job is
accepted when Redis has confirmed its batch, even without a live worker. It is completed when the batch's outcome
arrives.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from operator import attrgetter

from app.clock import PoolClock
from app.contract.payloads import JobForm
from app.ledger import wire
from app.ledger.wakeup_message import WakeUpMessages
from app.ledger.wire import BatchOutcome
from app.redis.client import ledger_error
from app.redis.link import RedisLink
from app.server_errors import (
    IdempotencyPendingError,
    LedgerUnavailableError,
    ModelyardError,
    QueueFullError,
    WireError,
)
from app.settings import ControllerSettings
from controller import batching
from controller.admission.wait_estimate import Backlogs, QueueBacklog
from controller.events import Accepted, Completed
from controller.jobs import BatchWriter, Job, SentBatch

logger = logging.getLogger(__name__)
_entry = attrgetter("entry")
_wants_outcome = attrgetter("wants_outcome")
_n_samples = attrgetter("entry.n_samples")
_deadline_ms = attrgetter("entry.deadline_ms")


@dataclass(eq=False, slots=True)
class Lane:
    """The unsent jobs of one queue.

    Attributes:
        n_samples: Number of samples in the unsent jobs.
        n_unawaited: Number of jobs since the last send whose callers wait only for acceptance, not for the outcome.
        turn: Calls `batching` at the end of this event loop iteration.
        timer: Sends the unsent jobs when their hold time has passed.
    """

    messages: WakeUpMessages
    backlog: QueueBacklog
    _: KW_ONLY
    unsent: list[Job] = field(default_factory=list)
    n_samples: int = 0
    n_unawaited: int = 0
    turn: asyncio.Handle | None = None
    timer: asyncio.TimerHandle | None = None


class Dispatcher:
    """Sends jobs to queues, in batches.

    Args:
        settings: Limits of batches.
        writer: Writes batches for the ledger.
        link: Stores batches.
        template: Message template of `app.ledger.wakeup_message.write_template`.
        backlogs: Held and sent jobs of each queue, and the cost of its batches.
        clock: Redis's clock.
        on_accepted: Called with each accepted batch after its callers are answered.
        on_completed: Called with each outcome after its callers are answered.

    Attributes:
        sent: Batches without an outcome, by id.
    """

    def __init__(
        self,
        settings: ControllerSettings,
        writer: BatchWriter,
        link: RedisLink,
        template: bytes,
        backlogs: Backlogs,
        clock: PoolClock,
        *,
        on_accepted: Sequence[Callable[[Accepted], None]] = (),
        on_completed: Sequence[Callable[[Completed], None]] = (),
    ) -> None:
        self.sent: dict[str, SentBatch] = {}
        self._prefix = settings.prefix
        self._limits = batching.Limits(
            max_jobs=settings.batch_max_jobs,
            max_samples=settings.batch_max_samples,
            hold_ms=settings.batch_hold_ms,
            hold_behind_ms=settings.batch_hold_behind_ms,
            ahead=settings.batches_ahead,
        )
        self._writer = writer
        self._link = link
        self._template = template
        self._backlogs = backlogs
        self._clock = clock
        self._on_accepted = on_accepted
        self._on_completed = on_completed
        self._lanes: dict[str, Lane] = {}
        self._n_unconfirmed = 0
        self._all_confirmed = asyncio.Event()

    def jobs(self) -> list[Job]:
        """Jobs that are not accepted yet, and jobs whose caller waits for the outcome."""
        unsent = [job for lane in self._lanes.values() for job in lane.unsent]
        return unsent + [job for batch in self.sent.values() for job in batch.unanswered]

    def lane(self, queue: str) -> Lane:
        """The lane of a queue, made when it is first asked for."""
        lane = self._lanes.get(queue)
        if lane is None:
            lane = self._lanes[queue] = Lane(WakeUpMessages(self._template, queue), self._backlogs.of(queue))
        return lane

    def submit(self, job: Job) -> None:
        """Add a job to its queue's lane. Its caller hears of acceptance, outcome or refusal by `job.on_answerable`."""
        queue = job.route.candidate.queue
        lane = self._lanes.get(queue) or self.lane(queue)
        entry, backlog = job.entry, lane.backlog
        lane.unsent.append(job)
        lane.n_samples += entry.n_samples
        lane.n_unawaited += not job.wants_outcome
        backlog.unsent_jobs += 1
        if entry.owner:
            backlog.open_by_caller[entry.owner] += 1
        if batching.is_full(len(lane.unsent), lane.n_samples, self._limits):
            self._send(lane, is_due=False)
        elif lane.turn is None:  # requests read in the same loop iteration share the batch
            lane.turn = asyncio.get_running_loop().call_soon(self._send, lane, False)

    def _send(self, lane: Lane, is_due: bool) -> None:
        """Send the unsent jobs that `batching` selects, and hold the others.

        Args:
            is_due: Whether their hold time has passed.
        """
        if lane.turn is not None:
            lane.turn.cancel()
            lane.turn = None
        if not lane.unsent:
            return
        plan = self._plan(lane, is_due)
        for size in plan.sizes:
            jobs, lane.unsent = lane.unsent[:size], lane.unsent[size:]
            if not jobs:
                break  # `_refuse` below may have called this method again: a refused caller posts its next job
            lane.n_samples -= sum(map(_n_samples, jobs))
            lane.n_unawaited = 0
            try:
                batch = self._writer.write(jobs, lane.messages)
            except Exception as error:
                self._refuse(lane, jobs, error)
                continue
            self.sent[batch.batch_id] = batch
            lane.backlog.send(len(jobs))
            self._n_unconfirmed += 1
            batch.accept.send(self._link, self._accepted, batch)
        if lane.unsent and lane.timer is None:
            loop = asyncio.get_running_loop()
            lane.timer = loop.call_later(plan.hold_ms / 1000, self._send_held, lane)

    def _plan(self, lane: Lane, is_due: bool) -> batching.Plan:
        """Ask `batching` about the unsent jobs, and prepare them for their batches; late ones are refused."""
        load = lane.backlog.load(lane.n_samples, lane.n_unawaited)
        plan = batching.plan(load, self._limits, map(_n_samples, lane.unsent), is_due=is_due)
        if not plan.sizes:
            return plan
        now_ms = self._clock.now_ms()
        if min(map(_deadline_ms, lane.unsent)) <= now_ms:
            self._refuse_late(lane, now_ms)
            return self._plan(lane, is_due) if lane.unsent else batching.Plan([])
        if lane.timer is not None:
            lane.timer.cancel()
            lane.timer = None
        if lane.unsent[0].form is None and lane.unsent[-1].form is None:
            return plan
        return batching.Plan(_sort_by_form(lane.unsent, plan.sizes), plan.hold_ms)

    def _send_held(self, lane: Lane) -> None:
        lane.timer = None
        self._send(lane, is_due=True)

    def _accepted(self, batch: SentBatch, redis_reply: object) -> None:
        """Process Redis's reply to a sent batch."""
        self._n_unconfirmed -= 1
        if not self._n_unconfirmed:
            self._all_confirmed.set()
        jobs = batch.unanswered
        if isinstance(redis_reply, Exception):
            self.abandon(batch)
            _refuse_all(jobs, ledger_error(redis_reply))
            return
        if isinstance(redis_reply, list):
            self._send_again_without(batch, redis_reply)
            return
        batch.unanswered = [job for job in jobs if job.wants_outcome]
        for job in jobs:
            job.accepted, job.data = True, b""
            if not job.wants_outcome:
                job.answer()
        if batch.unanswered:
            batch.end_due_waits()
        event = Accepted(batch.accept, time.monotonic() - batch.sent_at_s)
        # After the answers, which are written at the end of this turn of the loop.
        for observer in self._on_accepted:
            asyncio.get_running_loop().call_soon(observer, event)

    def completed(self, batch_id: str, outcome: BatchOutcome) -> None:
        """Process the outcome of a batch and answer its callers. A repeated call has no effect.

        Raises:
            WireError: The outcome belongs to another batch.
        """
        batch, heard_at_s = self.sent.get(batch_id), time.monotonic()
        if batch is None:
            return
        if len(batch.head.jobs) != len(outcome.jobs):
            raise WireError(f"{len(outcome.jobs)} outcomes for {len(batch.head.jobs)} jobs")
        if outcome.head:
            batch.move_to(wire.decode_head(outcome.head), self._prefix)
        batch.outcome = outcome
        # The jobs refer to their batch: a reference cycle would need the garbage collector.
        jobs, batch.unanswered = batch.unanswered, []
        all_received = len(jobs) == len(outcome.jobs) and all(map(_wants_outcome, jobs))
        # The next batch first: its worker is idle, and answering the callers of this batch takes time.
        self._free_place(batch, is_awaited=bool(jobs))
        if batch.timer:
            batch.timer.cancel()
        for job in jobs:
            job.answer()
        event = Completed(batch_id, batch.head, outcome, heard_at_s, all_received)
        # After the answers, which are written at the end of this turn of the loop.
        for observer in self._on_completed:
            asyncio.get_running_loop().call_soon(observer, event)

    def abandon(self, batch: SentBatch, lost: bool = False) -> None:
        """Stop waiting for the outcome of a batch; its jobs stay in the ledger, unless Redis lost them."""
        if batch.batch_id in self.sent:
            self._free_place(batch, is_awaited=True)
        if lost:
            why = "Redis lost its data, including this job; send it again"
            _refuse_all(batch.unanswered, LedgerUnavailableError(why, retry_after_s=1))

    async def close(self) -> None:
        """Send the unsent jobs and wait until they are accepted."""
        for lane in self._lanes.values():
            self._send(lane, is_due=True)
        while self._n_unconfirmed:
            self._all_confirmed.clear()
            await self._all_confirmed.wait()

    def _free_place(self, batch: SentBatch, *, is_awaited: bool) -> None:
        """Free the place of a sent batch in its lane, and send unsent jobs in its place.

        Args:
            is_awaited: Whether callers wait for it. They send their next requests after they are answered, so the
                unsent jobs are sent first. Otherwise they are sent with the requests of this loop iteration.
        """
        del self.sent[batch.batch_id]
        sent_to = batch.accept.batch.head.queue  # `batch.head` names another queue if it was rerouted
        lane = self._lanes[sent_to]
        lane.backlog.sent_batches -= 1
        lane.backlog.sent_jobs -= len(batch.head.jobs)
        if lane.backlog.open_by_caller:
            lane.backlog.close(batch.head.jobs)
        if not lane.unsent:
            return
        if is_awaited:
            self._send(lane, is_due=False)
        elif lane.turn is None:
            lane.turn = asyncio.get_running_loop().call_soon(self._send, lane, False)

    def _send_again_without(self, batch: SentBatch, places: list[int]) -> None:
        """Refuse the jobs that no longer hold their idempotency keys, and send the rest in a new batch.

        Args:
            places: Indexes of those keys among the keys of the batch.
        """
        self.abandon(batch)
        why = "the job was not accepted in time for its Idempotency-Key; send it again"
        with_key = [job for job in batch.unanswered if job.once]
        lost = {with_key[place] for place in places}
        for job in batch.unanswered:
            if job in lost:
                job.refuse(IdempotencyPendingError(why, retry_after_s=1))
            else:
                self.submit(job)
        self._send(self._lanes[batch.head.queue], is_due=True)

    def _refuse_late(self, lane: Lane, now_ms: float) -> None:
        """Refuse unsent jobs whose deadline has passed, because no worker would run them."""
        late = [job for job in lane.unsent if job.entry.deadline_ms <= now_ms]
        lane.unsent = [job for job in lane.unsent if job.entry.deadline_ms > now_ms]
        lane.n_samples -= sum(map(_n_samples, late))
        self._refuse(
            lane,
            late,
            QueueFullError("the deadline passed before the job could be sent; choose a longer deadline"),
        )

    @staticmethod
    def _refuse(lane: Lane, jobs: list[Job], error: Exception) -> None:
        """Refuse unsent jobs, which are no longer in the lane, instead of sending them."""
        if not isinstance(error, ModelyardError):
            logger.error("a batch could not be sent", exc_info=error)
            error = LedgerUnavailableError("the jobs could not be stored")
        lane.backlog.unsent_jobs -= len(jobs)
        lane.backlog.close(map(_entry, jobs))
        _refuse_all(jobs, error)


def _sort_by_form(unsent: list[Job], sizes: list[int]) -> list[int]:
    """Split batches so that all jobs of a batch have the same form; returns the new sizes.

    Args:
        unsent: The unsent jobs; the jobs to be sent are sorted in place into the order of their batches.
    """
    n_jobs, largest = sum(sizes), max(sizes)
    groups: dict[JobForm | None, list[Job]] = {}
    for job in unsent[:n_jobs]:
        groups.setdefault(job.form, []).append(job)
    unsent[:n_jobs] = [job for group in groups.values() for job in group]
    alike: list[int] = []
    for form, group in groups.items():
        step = largest if form is None or form.merges else 1
        alike += [min(step, len(group) - start) for start in range(0, len(group), step)]
    return alike


def _refuse_all(jobs: list[Job], error: ModelyardError) -> None:
    for job in jobs:
        job.refuse(error)
