"""Group commit: jobs that arrive while the batches of their queue are outstanding travel together in the next one.

A queue's lane sends at once until one batch of this controller is out and `batches_ahead` more, which the worker
finds when it has finished; else it holds its jobs until one returns, the batch is full, or `batch_hold_ms` have
passed. So an idle pool adds no delay, a busy one batches by itself, and a job is accepted whether or not a worker
is alive. Many callers who wait for acceptance alone are not held up for a worker that keeps up with them. Where a
batch takes a worker long, one may be out for each, and what waits is divided among them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf

import msgspec

from app.celery_app import BatchMessages
from app.clock import PoolClock
from app.errors import LedgerUnavailableError, ModelyardError, QueueFullError
from app.ledger import ids
from app.ledger.commands import Accept, NewBatch, OnceKey
from app.ledger.controller_ledger import key_lost
from app.ledger.ids import IdSigner
from app.ledger.wire import BatchHead, BatchOutcome, JobEntry
from app.redis.client import ledger_errors
from app.redis.link import RedisLink
from app.settings import ControllerSettings
from controller.admission.idempotency import Reservation
from controller.admission.wait_estimate import Backlogs, QueueBacklog
from controller.http.job_json import BatchJson
from controller.recovery.replay_buffer import ReplayBuffer
from controller.routing import Candidate, Route

logger = logging.getLogger(__name__)
LONG_BATCH_MS = 20.0  # many times what a batch costs beside the model
FEW_JOBS = 8
QUICK_PASS_MS = 0.05  # a job: what it takes the controller
MANY_JOBS = 64  # that cost the controller many times what one more batch does
ENOUGH_RECEIPTS = 48  # more of them make a job hardly cheaper, and keep those from sending who wait for them


class Job(msgspec.Struct, eq=False):
    """A request on its way: from `submit` until it is accepted, or until its outcome is known.

    Attributes:
        data: Samples, as `decode.to_samples` writes them.
        received_at_ms: When the request arrived, Redis's clock.
        deadline_ms: When it expires, Redis's clock.
        wants_outcome: Whether the outcome is waited for, rather than acceptance.
        waits_until_s: When such a wait ends, `time.monotonic()`.
        on_settled: Called once, with the job, when what is waited for is there, or `error`.
        error: Why the job was not accepted.
        owner: Name of the API key that it came with; empty where there was none.
        once: Its idempotency key, where it has one.
        expired: Whether its deadline is known to have passed before a worker took it.
    """

    route: Route
    data: bytes
    n_samples: int
    received_at_ms: float
    deadline_ms: float
    wants_outcome: bool
    waits_until_s: float
    on_settled: Callable[[Job], None]
    owner: str = ""
    once: Reservation | None = None
    batch: SentBatch | None = None
    index: int = -1
    accepted: bool = False
    expired: bool = False
    is_settled: bool = False
    error: ModelyardError | None = None

    def settle(self) -> None:
        """Tell whoever waits."""
        if self.is_settled:
            return
        self.is_settled = True
        self.on_settled(self)

    def fail(self, error: ModelyardError) -> None:
        """Tell whoever waits that the job was not accepted."""
        if not self.is_settled:
            self.error = error
            self.settle()

    def stop_waiting(self) -> None:
        """Tell whoever waits that the job is accepted, once it is, and wait no longer."""
        self.wants_outcome = False
        if self.accepted:
            self.settle()


@dataclass(eq=False, slots=True)
class SentBatch:
    """A batch whose outcome this controller has not heard of.

    Attributes:
        json: Writes its jobs.
        jobs: Once accepted, only those that wait for their outcome; none once it is known.
        heard_at_ms: When its outcome came, Redis's clock.
        timer: Ends their waits. One for all of them, as few waits end that way.
    """

    batch_id: str
    head: BatchHead
    json: BatchJson
    jobs: list[Job]
    sent_at_s: float
    outcome: BatchOutcome | None = None
    heard_at_ms: float = 0.0
    timer: asyncio.TimerHandle | None = None

    def end_waits(self) -> None:
        """Settle the jobs that have waited long enough, now and as each other one has."""
        now_s, next_s = time.monotonic(), inf
        for job in self.jobs:
            if job.waits_until_s <= now_s:
                job.stop_waiting()
            elif job.waits_until_s < next_s and not job.is_settled:
                next_s = job.waits_until_s
        if next_s < inf:
            self.timer = asyncio.get_running_loop().call_later(next_s - now_s, self.end_waits)


@dataclass(eq=False, slots=True)
class Lane:
    """One queue's jobs that wait to be sent, the samples in them, and what of it is out."""

    messages: BatchMessages
    backlog: QueueBacklog
    waiting: list[Job] = field(default_factory=list)
    n_samples: int = 0
    flush_due: asyncio.Handle | None = None


class Dispatcher:
    """Sends jobs to queues, in batches.

    Args:
        controller_id: Where outcomes are announced.
        link: Stores batches.
        template: Celery message, as `app.celery_app.message_template` answers it.
        backlogs: Told what is held, sent and back.
        recent: Keeps a copy of what was accepted.
        signer: Gives the current id signer; raises `LedgerUnavailableError` while there is none.
        on_sent: Told of each accepted batch and the seconds its acceptance took.
        on_outcome: Told of each batch whose outcome came.
    """

    def __init__(
        self,
        controller_id: str,
        link: RedisLink,
        template: bytes,
        clock: PoolClock,
        settings: ControllerSettings,
        backlogs: Backlogs,
        recent: ReplayBuffer,
        signer: Callable[[], IdSigner],
        on_sent: Callable[[SentBatch, float], None],
        on_outcome: Callable[[SentBatch], None],
    ) -> None:
        self.sent: dict[str, SentBatch] = {}
        self._controller_id = controller_id
        self._link = link
        self._template = template
        self._clock = clock
        self._settings = settings
        self._retention_ms = int(settings.result_retention_s * 1000)
        self._backlogs = backlogs
        self._recent = recent
        self._signer = signer
        self._on_sent = on_sent
        self._on_outcome = on_outcome
        self._lanes: dict[str, Lane] = {}
        self._n_unconfirmed = 0
        self._all_confirmed = asyncio.Event()

    def submit(self, job: Job) -> None:
        """Take a job over; `job.on_settled` hears the rest."""
        candidate = job.route.candidate
        lane = self.lane(candidate.queue)
        lane.waiting.append(job)
        lane.n_samples += job.n_samples
        lane.backlog.held_jobs += 1
        self._schedule(lane, job)

    def jobs(self) -> list[Job]:
        """Jobs that are not accepted yet, or whose caller waits for the outcome."""
        held = [job for lane in self._lanes.values() for job in lane.waiting]
        return held + [job for batch in self.sent.values() for job in batch.jobs]

    def open_jobs(self, queue: str) -> Counter[str]:
        """Jobs of a queue whose outcome is not known here, by the name of their API key."""
        lane = self._lanes.get(queue)
        counts = Counter([job.owner for job in lane.waiting] if lane else ())
        for batch in self.sent.values():
            if batch.head.queue == queue:
                counts.update([job.owner for job in batch.head.jobs])
        return counts

    def lane(self, queue: str) -> Lane:
        """The queue's lane."""
        lane = self._lanes.get(queue)
        if lane is None:
            lane = self._lanes[queue] = Lane(BatchMessages(self._template, queue), self._backlogs.of(queue))
        return lane

    def settle_batch(self, batch_id: str, outcome: BatchOutcome) -> None:
        """Take over the outcome of a batch and wake its waiters. Hearing of it twice changes nothing."""
        batch = self.sent.pop(batch_id, None)
        if batch is None:
            return
        batch.outcome, batch.heard_at_ms = outcome, self._clock.now_ms()
        # The next batch first: its worker is idle, and answering this one's waiters takes a while, if it has any.
        lane = self._lanes[batch.head.queue]
        self._returned(lane, len(batch.head.jobs), hurry=bool(batch.jobs))
        if batch.timer:
            batch.timer.cancel()
        for job in batch.jobs:
            if job.wants_outcome:
                job.settle()
        # After the answers, which are written at the end of this turn of the loop.
        asyncio.get_running_loop().call_soon(self._learn, lane, batch, outcome)

    def _learn(self, lane: Lane, batch: SentBatch, outcome: BatchOutcome) -> None:
        lane.backlog.hear(batch.batch_id, outcome)
        self._recent.settle(batch)
        self._on_outcome(batch)
        batch.jobs = []  # they know their batch: what points in a circle would be the garbage collector's

    def abandon(self, batch: SentBatch, lost: bool = False) -> None:
        """Stop waiting for the outcome of a batch; its jobs live on in the ledger, unless it lost them."""
        if self.sent.pop(batch.batch_id, None):
            self._returned(self._lanes[batch.head.queue], len(batch.head.jobs))
        if lost:
            for job in batch.jobs:
                job.fail(
                    LedgerUnavailableError(
                        "Redis has lost its data, and with it this job; send it again", retry_after_s=1
                    )
                )

    async def close(self) -> None:
        """Send what waits, and wait until that is accepted."""
        for lane in self._lanes.values():
            self._flush(lane)
        while self._n_unconfirmed:
            self._all_confirmed.clear()
            await self._all_confirmed.wait()

    def _returned(self, lane: Lane, n_jobs: int, *, hurry: bool = True) -> None:
        lane.backlog.sent_batches -= 1
        lane.backlog.sent_jobs -= n_jobs
        if not (lane.waiting and self._is_open(lane)):
            return
        if hurry:
            self._flush(lane)
        else:
            self._flush_soon(lane)

    def _flush_soon(self, lane: Lane) -> None:
        """Flush at the end of this turn of the loop: requests that are read in the same turn share the batch."""
        if lane.flush_due is not None:
            lane.flush_due.cancel()
        lane.flush_due = asyncio.get_running_loop().call_soon(self._flush, lane)

    def _schedule(self, lane: Lane, job: Job) -> None:
        if self._is_full(lane) or (not job.wants_outcome and self._has_enough_receipts(lane)):
            self._flush(lane)
        elif lane.flush_due is not None:
            return
        elif self._is_open(lane):
            self._flush_soon(lane)
        else:
            loop = asyncio.get_running_loop()
            lane.flush_due = loop.call_later(self._hold_ms(lane) / 1000, self._flush, lane)

    def _is_full(self, lane: Lane) -> bool:
        limits = self._settings
        return len(lane.waiting) >= limits.batch_max_jobs or lane.n_samples >= limits.batch_max_samples

    def _has_enough_receipts(self, lane: Lane) -> bool:
        """Whether many wait, and the workers are soon done with what they have: larger batches would help nobody."""
        if len(lane.waiting) < ENOUGH_RECEIPTS:
            return False
        return self._is_quick(lane) and self._hold_ms(lane) <= self._settings.batch_hold_ms

    def _is_open(self, lane: Lane) -> bool:
        return lane.backlog.sent_batches < self._places(lane, lane.backlog.sent_jobs)

    def _places(self, lane: Lane, n_out: int) -> int:
        """Batches of the queue that may be out: one in hand and those ahead; one in every hand where one takes long.

        Several workers of a fast model would only be given smaller batches, which cost everybody more. So would one,
        if it had a batch ahead of those it works off sooner than the controller answers them.

        Args:
            n_out: Jobs in them.
        """
        busy = lane.backlog.workers if self._takes_long(lane) else 1
        is_quick = n_out >= FEW_JOBS and self._is_quick(lane)
        return busy + (0 if is_quick else self._settings.batches_ahead)

    @staticmethod
    def _is_quick(lane: Lane) -> bool:
        return lane.backlog.pass_ms < QUICK_PASS_MS

    @staticmethod
    def _takes_long(lane: Lane) -> bool:
        return lane.backlog.costs.batch_ms(max(len(lane.waiting), 1)) > LONG_BATCH_MS

    def _hold_ms(self, lane: Lane) -> float:
        # Behind a long backlog nothing is lost by waiting for company, and much is won: batches that were closed
        # as fast as on an idle queue would be small, and a queue at its limit slower with each round.
        behind_ms = min(lane.backlog.expected_wait_ms() / 4, self._settings.batch_hold_behind_ms)
        return max(behind_ms, self._settings.batch_hold_ms)

    def _flush(self, lane: Lane) -> None:
        if lane.flush_due is not None:
            lane.flush_due.cancel()
            lane.flush_due = None
        self._drop_late(lane)
        share = self._share(lane)
        while lane.waiting:
            jobs = self._take(lane, share)
            lane.backlog.send(len(jobs))
            self._send(lane, jobs)

    def _drop_late(self, lane: Lane) -> None:
        """Refuse held jobs whose deadline has passed: no worker would run them."""
        now_ms = self._clock.now_ms()
        late = [job for job in lane.waiting if job.deadline_ms <= now_ms]
        if not late:
            return
        lane.waiting = [job for job in lane.waiting if job.deadline_ms > now_ms]
        lane.n_samples -= sum(job.n_samples for job in late)
        lane.backlog.held_jobs -= len(late)
        for job in late:
            job.fail(QueueFullError("the deadline passed before the job could be sent; allow a later one"))

    def _share(self, lane: Lane) -> int:
        """Jobs of a batch: all that wait, unless several batches are better.

        Where one would keep a worker busy for long, the others are to share it. And where many wait and little is
        out, two overlap: one runs while the other's callers are answered.
        """
        n_jobs = len(lane.waiting)
        n_out = n_jobs + lane.backlog.sent_jobs
        fair = n_out / self._places(lane, n_out)
        if lane.backlog.workers > 1 and self._takes_long(lane):
            share = max(fair, n_jobs * LONG_BATCH_MS / lane.backlog.costs.batch_ms(n_jobs))
        elif n_jobs >= MANY_JOBS:
            share = n_jobs / max(round(n_jobs / fair), 1)
        else:
            share = n_jobs
        return min(ceil(share), self._settings.batch_max_jobs)

    def _take(self, lane: Lane, share: int) -> list[Job]:
        """The next batch: the longest prefix within the limits, and at least one job."""
        n_samples = count = 0
        for job in lane.waiting[:share]:
            n_samples += job.n_samples
            if count and n_samples > self._settings.batch_max_samples:
                break
            count += 1
        jobs, lane.waiting = lane.waiting[:count], lane.waiting[count:]
        lane.n_samples -= sum(job.n_samples for job in jobs)
        return jobs

    def _send(self, lane: Lane, jobs: list[Job]) -> None:
        start_s = time.monotonic()
        try:
            new = self._new_batch(lane, jobs)
            accept = Accept.of(new, self._retention_ms)
        except Exception as error:
            if not isinstance(error, ModelyardError):
                logger.exception("a batch could not be sent")
                error = LedgerUnavailableError("the jobs could not be stored")
            self._returned(lane, len(jobs))
            _refuse(jobs, error)
            return
        batch = self._register(new, jobs, start_s)
        self._n_unconfirmed += 1

        def confirmed(reply: object) -> None:
            self._confirmed(batch, accept, reply)

        if accept.is_large:
            self._link.store_and_run(confirmed, accept.samples(), accept.call_after_samples())
        else:
            self._link.run_script(confirmed, accept.call())

    def _confirmed(self, batch: SentBatch, accept: Accept, reply: object) -> None:
        self._n_unconfirmed -= 1
        if not self._n_unconfirmed:
            self._all_confirmed.set()
        jobs = batch.jobs
        try:
            with ledger_errors():
                if isinstance(reply, Exception):
                    raise reply
        except ModelyardError as error:
            self.abandon(batch)
            _refuse(jobs, error)
            return
        if isinstance(reply, list):
            self._send_again_without(batch, reply)
            return
        self._recent.keep(accept)
        batch.jobs = [job for job in jobs if job.wants_outcome]
        for job in jobs:
            job.accepted, job.data = True, b""
            if not job.wants_outcome:
                job.settle()
        batch.end_waits()
        self._on_sent(batch, time.monotonic() - batch.sent_at_s)

    def _send_again_without(self, batch: SentBatch, places: list[int]) -> None:
        """Refuse the jobs whose idempotency keys were no longer their posts', and send the rest in a new batch.

        Args:
            places: Of those keys, among the keys of the batch.
        """
        self.abandon(batch)
        with_key = [job for job in batch.jobs if job.once]
        lost = {with_key[place] for place in places}
        for job in batch.jobs:
            if job in lost:
                job.fail(key_lost())
            else:
                self.submit(job)
        self._flush(self._lanes[batch.head.queue])

    def _register(self, new: NewBatch, jobs: list[Job], sent_at_s: float) -> SentBatch:
        # Before it is stored: its outcome may come on another connection before the store is confirmed.
        json = BatchJson(new.batch_id, new.head, prefix=self._settings.prefix)
        batch = SentBatch(new.batch_id, new.head, json, jobs, sent_at_s)
        for index, job in enumerate(jobs):
            job.batch, job.index = batch, index
        self.sent[new.batch_id] = batch
        return batch

    def _new_batch(self, lane: Lane, jobs: list[Job]) -> NewBatch:
        now_ms = self._clock.now_ms()
        batch_id = self._signer().new_batch_id(now_ms, len(jobs))
        return NewBatch(
            batch_id=batch_id,
            head=self._head(jobs[-1].route.candidate, jobs),
            data=b"".join([job.data for job in jobs]) if len(jobs) > 1 else jobs[0].data,
            message=lane.messages.write(batch_id),
            accepted_at_ms=now_ms,
            once=[
                OnceKey(job.once.name, job.once.fence, job.once.value(ids.job_id(batch_id, index)))
                for index, job in enumerate(jobs)
                if job.once
            ],
        )

    def _head(self, candidate: Candidate, jobs: list[Job]) -> BatchHead:
        return BatchHead(
            queue=candidate.queue,
            worker=candidate.worker,
            reply_to=self._controller_id,
            model_name=candidate.model_name,
            model_version=candidate.model_version,
            val_accuracy=candidate.val_accuracy,
            dtype=candidate.contract.dtype,
            sample_shape=candidate.contract.sample_shape,
            jobs=[
                JobEntry(
                    job.n_samples,
                    job.received_at_ms,
                    job.deadline_ms,
                    job.route.policy,
                    job.route.forced,
                    job.owner,
                )
                for job in jobs
            ],
        )


def _refuse(jobs: list[Job], error: ModelyardError) -> None:
    for job in jobs:
        job.fail(error)
