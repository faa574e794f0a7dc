"""Jobs whose callers wait for an answer, and the batches that carry them to a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from operator import attrgetter
from typing import Any

import msgspec

from app.contract import TensorContract
from app.contract.payloads import JobForm
from app.ledger import ids
from app.ledger.commands import PIECE_BYTES, Accept, NewBatch, OnceKey
from app.ledger.wakeup_message import WakeUpMessages
from app.ledger.wire import PIECES_VERSION, BatchHead, BatchOutcome, JobEntry
from app.quality import VAL_ACCURACY
from app.server_errors import ModelyardError
from app.settings import ControllerSettings
from controller.admission.idempotency import Reservation
from controller.endpoints import Route
from controller.http.job_json import BatchJson
from controller.pool_watcher import PoolWatcher

_entry = attrgetter("entry")
_data = attrgetter("data")
_once = attrgetter("once")


class Job(msgspec.Struct, eq=False):
    """A request from `submit` until its caller can be answered.

    Attributes:
        entry: Its entry in the ledger.
        data: Samples, C order, little-endian; empty after acceptance.
        wants_outcome: Whether its caller waits for the outcome instead of acceptance.
        waits_until_s: When the wait for the outcome ends, `time.monotonic()`.
        on_answerable: Called once with the job when the caller can be answered: the wait is over, or `error` is set.
        once: Its idempotency key, if it has one.
        batch: Its batch; `index` is its place in that batch.
        expired: Whether its deadline has passed before a worker took it.
        error: Why it was refused: it was not accepted, or Redis lost it.
        form: Properties that all jobs of a batch must share; None if the version takes a plain tensor.
        is_unified: Whether its request has MLflow's unified form, whose answer has no `predictions`.
        trace: Its W3C `traceparent`, or empty.
        callback: URL of its webhook, or empty.
    """

    route: Route
    entry: JobEntry
    data: bytes
    wants_outcome: bool
    waits_until_s: float
    on_answerable: Callable[[Job], None]
    once: Reservation | None = None
    batch: SentBatch | None = None
    index: int = -1
    accepted: bool = False
    expired: bool = False
    is_answered: bool = False
    error: ModelyardError | None = None
    form: JobForm | None = None
    is_unified: bool = False
    trace: str = ""
    callback: str = ""

    def answer(self) -> None:
        """Answer the caller, unless that was done before."""
        if not self.is_answered:
            self.is_answered = True
            self.on_answerable(self)

    def refuse(self, error: ModelyardError) -> None:
        """Tell the caller that the job will have no outcome."""
        if not self.is_answered:
            self.error = error
            self.answer()

    def stop_waiting(self) -> None:
        """Stop waiting for the outcome: the caller is answered when the job is accepted."""
        self.wants_outcome = False
        if self.accepted:
            self.answer()


@dataclass(eq=False, slots=True)
class SentBatch:
    """A batch whose outcome this controller has not received.

    Attributes:
        accept: The rendered command that accepts it.
        json: Encodes its jobs for their callers.
        unanswered: Its jobs whose callers have no answer yet: all before acceptance, then the jobs whose callers wait
            for the outcome, and none when the outcome is known.
        sent_at_s: When it was sent, `time.monotonic()`.
        timer: Ends the waits of its jobs. One timer for all jobs, because few waits time out.
    """

    batch_id: str
    head: BatchHead
    accept: Accept
    json: BatchJson
    unanswered: list[Job]
    sent_at_s: float
    outcome: BatchOutcome | None = None
    timer: asyncio.TimerHandle | None = None

    def move_to(self, head: BatchHead, prefix: str) -> None:
        """Take the head that the batch got when it was moved to another version."""
        self.head, self.json = head, BatchJson(self.batch_id, head, prefix)

    def end_due_waits(self) -> None:
        """Answer the callers whose wait has timed out, and set the timer for the next one."""
        now_s, next_s = time.monotonic(), inf
        for job in self.unanswered:
            if job.waits_until_s <= now_s:
                job.stop_waiting()
            elif job.waits_until_s < next_s and not job.is_answered:
                next_s = job.waits_until_s
        if next_s < inf:
            self.timer = asyncio.get_running_loop().call_later(next_s - now_s, self.end_due_waits)


class BatchWriter:
    """Writes the batches of one controller: their heads, data and ids.

    Args:
        controller_id: Controller to which outcomes are announced.
        watcher: Provides the id signer and Redis's clock.
    """

    def __init__(self, controller_id: str, settings: ControllerSettings, watcher: PoolWatcher) -> None:
        self._controller_id = controller_id
        self._prefix = settings.prefix
        self._retention_ms = int(settings.result_retention_s * 1000)
        self._is_traced = settings.opentelemetry
        self._has_webhooks = bool(settings.webhook_hosts)
        self._watcher = watcher

    def write(self, jobs: list[Job], messages: WakeUpMessages) -> SentBatch:
        """Write a batch of jobs that agree in their form.

        Its head has the figures of the newest job's route: the pool may have been read again since the oldest one.
        """
        now_ms, data = self._watcher.clock.now_ms(), b"".join(map(_data, jobs))
        batch_id, head = self._watcher.signer.new_batch_id(now_ms, len(jobs)), self._head(jobs, len(data))
        message = messages.write(batch_id)
        once = _once_keys(batch_id, jobs) if any(map(_once, jobs)) else ()
        accept = Accept.of(NewBatch(batch_id, head, data, message, now_ms, once), self._retention_ms)
        json = BatchJson(batch_id, head, self._prefix)
        batch = SentBatch(batch_id, head, accept, json, jobs, time.monotonic())
        for index, job in enumerate(jobs):
            job.batch, job.index = batch, index
        return batch

    def _head(self, jobs: list[Job], data_bytes: int) -> BatchHead:
        candidate, form = jobs[-1].route.candidate, jobs[0].form
        contract, more = candidate.contract, dict[str, Any]()
        if candidate.metric != VAL_ACCURACY:
            more = {
                "metric": candidate.metric,
                "direction": candidate.direction,
                "metric_value": candidate.figure,
            }
        if form is not None:
            more |= form.head_fields([len(job.data) for job in jobs])
        if data_bytes > PIECE_BYTES:
            more["schema_version"] = PIECES_VERSION
        if self._is_traced:
            more["traces"] = tuple([job.trace for job in jobs])
        if self._has_webhooks:
            more["callbacks"] = {index: job.callback for index, job in enumerate(jobs) if job.callback}
        return BatchHead(
            queue=candidate.queue,
            worker=candidate.worker,
            reply_to=self._controller_id,
            model_name=candidate.model_name,
            model_version=candidate.model_version,
            val_accuracy=candidate.figure if candidate.metric == VAL_ACCURACY else None,
            dtype=contract.dtype if isinstance(contract, TensorContract) else "",
            sample_shape=contract.sample_shape if isinstance(contract, TensorContract) else (),
            jobs=list(map(_entry, jobs)),
            cold=not candidate.live_workers,
            **more,
        )


def _once_keys(batch_id: str, jobs: list[Job]) -> list[OnceKey]:
    return [
        OnceKey(job.once.name, job.once.fence, job.once.value(ids.job_id(batch_id, index)))
        for index, job in enumerate(jobs)
        if job.once
    ]
