"""Runs batches: claim one, exclude ended jobs, run one forward pass, write the outcomes and take the next batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.clock import PoolClock
from app.ledger import ids
from app.ledger.wire import CANCELLED, EXPIRED, BatchOutcome, JobEntry, JobOutcome, outcome_version
from app.ledger.worker_ledger import ClaimedBatch, WorkerLedger
from app.server_errors import (
    InferenceTimeoutError,
    LedgerUnavailableError,
    ModelyardError,
    WireError,
    first_line,
)
from app.unreadable import Unreadable
from workers.batch_traces import BatchTraces
from workers.job_inputs import decode, job_data, model_input
from workers.job_outputs import to_outcomes
from workers.process.heartbeat import Heartbeat
from workers.process.in_flight_marker import InFlightMarker
from workers.process.time_limit import TimeLimit
from workers.warm_up import LoadedModel

logger = logging.getLogger(__name__)
FINISH_RETRY_S = 20.0
TRY_AGAIN_S = 0.2
# During this time Celery's event loop is blocked: SIGTERM and Celery's own heartbeats wait.
CHAIN_S = 0.25

QUARANTINED = JobOutcome(
    "failed", error_code="job_quarantined", error_detail="the job's worker died or hung each time it ran"
)
TIMED_OUT = JobOutcome(
    "failed",
    error_code=InferenceTimeoutError.code,
    error_detail="the forward pass exceeded its time limit, and its process was ended",
)


class _ClaimLostError(Exception):
    """The batch was given to another worker while this one ran it."""


class JobsFailedError(Exception):
    """Jobs of a batch failed without an exception from the model."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of running a batch.

    Attributes:
        at_s: Start time, seconds since the epoch.
        took_s: Duration in seconds.
        result: Short description of the result, for Flower.
        failure: Why some of its jobs failed, or why it has no outcome; None if nothing failed.
    """

    batch_id: str
    at_s: float
    took_s: float
    result: str
    failure: Exception | None = None


class BatchRunner:
    """Runs the batches of the Celery task.

    Args:
        limit: Ends a forward pass that takes too long.
        marker: Records each batch, and each job that runs alone.
        max_attempts: Number of worker deaths after which a job is quarantined.
        traces: Told of each batch that was run; None if traces are off.
    """

    def __init__(
        self,
        ledger: WorkerLedger,
        model: LoadedModel,
        heartbeat: Heartbeat,
        clock: PoolClock,
        limit: TimeLimit,
        marker: InFlightMarker,
        *,
        max_attempts: int,
        traces: BatchTraces | None = None,
    ) -> None:
        self._ledger = ledger
        self._model = model
        self._heartbeat = heartbeat
        self._clock = clock
        self._limit = limit
        self._marker = marker
        self._max_attempts = max_attempts
        self._traces = traces
        self._unreadable = Unreadable()
        self._running: ClaimedBatch | None = None
        self._failure: Exception | None = None

    def run_chain(self, batch_id: str, on_begin: Callable[[str], None] | None = None) -> Iterator[Ran]:
        """Run a batch, and the next batches of the queue until Celery's event loop must continue.

        Args:
            on_begin: Called with the id of each batch before it runs.
        """
        until_s = time.monotonic() + CHAIN_S
        following: str | None = batch_id
        while following:
            if on_begin:
                on_begin(following)
            at_s, start_s = time.time(), time.monotonic()
            result = self.run(following, until_s)
            failure, self._failure = self._failure, None  # its traceback keeps the batch's samples in memory
            yield Ran(following, at_s, time.monotonic() - start_s, result, failure)
            following = self._ledger.taken or self._take(until_s)

    def _take(self, until_s: float) -> str | None:
        """Wait for the next batch and take it; None if Celery's event loop must continue."""
        try:
            if self._may_take(until_s):
                self._ledger.take(until_s - time.monotonic())
        except (LedgerUnavailableError, WireError) as error:
            logger.info("the next batch is left to Celery's consumer: %s", error.detail)
        return self._ledger.taken

    def _may_take(self, until_s: float) -> bool:
        return time.monotonic() < until_s and self._heartbeat.takes_batches

    def run(self, batch_id: str, take_until_s: float = 0) -> str:
        """Run a batch and write its outcomes. Never raises.

        If Redis does not answer, the reconciler sends the batch again; the jobs of an unreadable batch have failed.

        Args:
            take_until_s: Time (`time.monotonic()`) until which finishing this batch also takes the next one.

        Returns:
            Short description of the result, for Celery's log and Flower.
        """
        self._failure = None
        try:
            batch = self._ledger.claim(batch_id)
            if batch is None:
                return "nothing to do: the batch has its outcome, or another worker claimed it"
            return self._run_claimed(batch, take_until_s)
        except LedgerUnavailableError as error:
            self._failure = error
            logger.warning("batch %s is left for the reconciler: %s", batch_id, error.detail)
            return "left for the reconciler: Redis does not answer"
        except WireError as error:
            self._failure = error
            self._unreadable.note("batch", batch_id, error.detail)
            self._heartbeat.unreadable_seen()
            return "unreadable"

    def running(self) -> dict[str, str]:
        """The running batch, and the job if it runs alone, for log lines."""
        batch, noted = self._running, self._marker.read()
        if batch is None:
            return {}
        is_alone = noted is not None and noted.batch_id == batch.batch_id
        alone = {"job_id": ids.job_id(batch.batch_id, noted.index)} if noted and is_alone else {}
        return {"batch_id": batch.batch_id, **alone}

    def close_hung_job(self) -> None:
        """Record a timeout for the job that runs alone, because only the end of this process can stop it.

        A batch that runs together is left unchanged: the next worker runs its jobs one by one. Called from another
        thread while the main thread is stuck in the model.
        """
        batch, noted = self._running, self._marker.read()
        if batch is None or noted is None:
            return
        alone = noted.index if noted.batch_id else None
        logger.critical(
            "a forward pass exceeded its time limit (batch %s, job %s); ending the process",
            batch.batch_id,
            alone,
        )
        if alone is not None:
            self._ledger.progress(batch, None, (alone, TIMED_OUT))

    def _run_claimed(self, batch: ClaimedBatch, take_until_s: float) -> str:
        self._running = batch
        self._marker.batch_started()
        self._heartbeat.batch_started(batch.batch_id)
        outcome = BatchOutcome(
            worker_id=self._ledger.worker_id,
            started_at_ms=0,
            finished_at_ms=0,
            inference_ms=0,
            n_samples=0,
            jobs=[],
        )
        try:
            outcome = self._infer(batch)
            written = self._finish(batch, outcome, take_until_s)
            if self._traces is not None and written:
                self._traces.ran(batch, outcome)
        except _ClaimLostError:
            written = False
        except WireError:
            self._ledger.close_unreadable(batch.batch_id)
            raise
        finally:
            self._running = None
            self._marker.batch_ended()
            statuses = [job.status for job in outcome.jobs]
            succeeded, failed = statuses.count("succeeded"), statuses.count("failed")
            self._heartbeat.batch_ended(succeeded, failed, outcome.n_samples, outcome.inference_ms)
        if not written:
            return "too late: the claim was revoked, or the record is gone"
        if failed and not self._failure:
            self._failure = JobsFailedError(f"{failed} of {len(outcome.jobs)} jobs failed")
        return f"{succeeded} of {len(outcome.jobs)} jobs succeeded"

    def _finish(self, batch: ClaimedBatch, outcome: BatchOutcome, take_until_s: float) -> bool:
        """Write the outcome, with retries while Redis is unreachable: cheaper than running the batch again."""
        give_up_at_s = time.monotonic() + FINISH_RETRY_S
        quarantined = _quarantined(batch, outcome) if batch.attempts > 1 else None
        while True:
            try:
                take = self._may_take(take_until_s)
                return self._ledger.finish(batch, outcome, quarantined, take=take)
            except LedgerUnavailableError:
                if time.monotonic() > give_up_at_s:
                    raise
                time.sleep(TRY_AGAIN_S)

    def _infer(self, batch: ClaimedBatch) -> BatchOutcome:
        outcomes: list[JobOutcome | None] = []
        to_run: list[int] = []
        n_samples, inference_ms = 0, 0.0
        for index, job in enumerate(batch.head.jobs):
            outcomes.append(self._exclude(batch, index, job))
            if outcomes[index] is None:
                to_run.append(index)
                n_samples += job.n_samples
        if to_run:
            start = time.perf_counter()
            # Claimed before, so a worker may have died with it: running each job alone shows which job caused it.
            run = self._run_isolated if batch.attempts > 1 else self._run_together
            for index, outcome in zip(to_run, run(batch, to_run), strict=True):
                outcomes[index] = outcome
            inference_ms = (time.perf_counter() - start) * 1000
        jobs = [outcome for outcome in outcomes if outcome]
        return BatchOutcome(
            worker_id=self._ledger.worker_id,
            started_at_ms=batch.claimed_at_ms,
            finished_at_ms=max(self._clock.now_ms(), batch.claimed_at_ms + inference_ms),
            inference_ms=round(inference_ms, 3),
            n_samples=n_samples,
            jobs=jobs,
            schema_version=outcome_version(jobs),
            labels=self._model.labels,
        )

    def _exclude(self, batch: ClaimedBatch, index: int, job: JobEntry) -> JobOutcome | None:
        """The outcome of a job that must not run, else None."""
        # Cancelled and expired first: a caller may have read that state between two claims.
        if index in batch.cancelled:
            return CANCELLED
        if job.deadline_ms <= batch.claimed_at_ms:
            return EXPIRED
        if index in batch.kept:
            return batch.kept[index]
        # The worker that died first ran all jobs together, so its death counts against each of them.
        suspected_deaths = batch.deaths.get(index, 0) + 1 if batch.attempts > 1 else 0
        return QUARANTINED if suspected_deaths >= self._max_attempts else None

    def _run_together(self, batch: ClaimedBatch, indexes: Sequence[int]) -> list[JobOutcome]:
        """Run one forward pass for all jobs; if it fails, run one pass per job, so that only the bad job fails."""
        if len(indexes) > 1:
            try:
                return self._outcomes(batch, indexes)
            except WireError:
                raise
            except Exception as error:
                logger.info("batch %s runs job by job: %s", batch.batch_id, first_line(error))
        # Read the inputs again: the model may have modified the samples before it failed.
        return [self._run_one(batch, index) for index in indexes]

    def _run_isolated(self, batch: ClaimedBatch, indexes: Sequence[int]) -> list[JobOutcome]:
        """Run one forward pass per job, each recorded in the ledger before it starts and after it ends."""
        outcomes: list[JobOutcome] = []
        done = None
        for index in indexes:
            if not self._ledger.progress(batch, index, done):
                raise _ClaimLostError
            outcomes.append(self._run_one(batch, index))
            done = (index, outcomes[-1])
        return outcomes

    def _run_one(self, batch: ClaimedBatch, index: int) -> JobOutcome:
        # Earlier jobs of the batch may have used their full time limit.
        if batch.head.jobs[index].deadline_ms <= self._clock.now_ms():
            return EXPIRED
        self._marker.runs_alone(batch.batch_id, index)
        try:
            return self._outcomes(batch, [index])[0]
        except WireError:
            raise
        except Exception as error:
            self._failure = error
            return _failure(error)
        finally:
            self._marker.ran()

    def _outcomes(self, batch: ClaimedBatch, indexes: Sequence[int]) -> list[JobOutcome]:
        """Run one forward pass for the jobs at `indexes`."""
        model, head = self._model, batch.head
        given = model_input(batch, indexes, model.contract, model.takes_matrix)
        predict = partial(model.predict, params=decode(head.params)) if head.params else model.predict
        output: Any = self._limit.run(predict, given)
        self._marker.passed()
        counts = [head.jobs[index].n_samples for index in indexes]
        return to_outcomes(output, counts, model.contract, model.task, model.allows_non_finite)


def _quarantined(batch: ClaimedBatch, outcome: BatchOutcome) -> dict[int, bytes]:
    """Data of the jobs that this outcome quarantines, by index."""
    found = [i for i, job in enumerate(outcome.jobs) if job is QUARANTINED]
    return {i: job_data(batch, i) for i in found}


def _failure(error: Exception) -> JobOutcome:
    # The text of an unknown error may be sensitive: it is logged, and the caller gets a fixed text.
    if isinstance(error, ModelyardError):
        return JobOutcome("failed", error_code=error.code, error_detail=error.detail)
    logger.error("the model failed on a job", exc_info=error)
    return JobOutcome("failed", error_code="model_failed", error_detail="the model failed on this input")
