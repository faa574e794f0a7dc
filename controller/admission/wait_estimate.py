"""Estimates the wait of a job in each queue, and whether the wait fits its deadline.

Counts the jobs of each queue and learns the cost of its batches; `batching` computes the expected wait from these.
Routing breaks ties by the expected wait, and a queue is full if its wait is too long.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf

from app.ledger import ids
from app.ledger.wire import BatchOutcome, JobEntry
from app.server_errors import QueueFullError
from app.settings import ControllerSettings
from app.worker_record import WorkerRecord, ready_by_queue
from controller.admission.full_queue import FullQueue
from controller.batching import Load, expected_wait_ms
from controller.events import Completed

# Minimum cost of a batch: the worker's time for the message alone.
LEAST_BATCH_MS = 1.0
# Pause between two batches of a busy worker. A longer pause means that it ran another controller's batch.
LONGEST_PAUSE_MS = 10.0
WEIGHT = 0.25
LARGEST_STEP = 2.0
# How far callers below their share may exceed a full queue: as fractions of the job limit, and of the remaining time
# to the deadline.
OVERFLOW = 0.5
LEAST_OWN_SHARE = 1 / 8  # minimum share of a queue's work that a controller assumes for its own callers


class BatchCosts:
    """The duration of batches by their number of jobs, learnt from returned batches.

    Sizes are grouped in doubling classes (1, 2-3, 4-7, …), each with a moving mean; values between them are
    interpolated. A batch cost is assumed to be a fixed part plus a part per job. Beyond the measured sizes, the lowest
    possible cost is assumed: no caller is refused for a cost that was never measured.

    Attributes:
        usual_jobs: Moving mean of the number of jobs in a batch.
        largest_ms: The longest mean duration of all size classes, in milliseconds.
    """

    def __init__(self) -> None:
        self.usual_jobs = 1.0
        self.largest_ms = LEAST_BATCH_MS
        self._classes: dict[int, tuple[float, float]] = {}
        self._jobs: list[float] = []
        self._ms: list[float] = []

    @property
    def known(self) -> bool:
        """Whether anything was learnt."""
        return bool(self._jobs)

    def learn(self, jobs: float, took_ms: float) -> None:
        """Learn the duration of a batch with `jobs` jobs. An outlier is counted as twice its class's mean."""
        size_class = int(jobs).bit_length()
        before = self._classes.get(size_class)
        if before is None:
            after = (jobs, max(took_ms, LEAST_BATCH_MS))
        else:
            took_ms = min(max(took_ms, LEAST_BATCH_MS), LARGEST_STEP * before[1])
            after = (_moved(before[0], jobs), _moved(before[1], took_ms))
        self.usual_jobs = _moved(self.usual_jobs, jobs) if self._classes else jobs
        self._classes[size_class] = after
        sizes, costs = zip(*sorted(self._classes.values()), strict=True)
        # A batch never costs more than a larger one: the first batch of a size may have met a suspended worker.
        self._jobs, self._ms = list(sizes), list(accumulate(reversed(costs), min))[::-1]
        self.largest_ms = self._ms[-1]

    def batch_ms(self, jobs: float) -> float:
        """The expected duration of a batch with `jobs` jobs."""
        sizes, costs = self._jobs, self._ms
        if not sizes:
            return LEAST_BATCH_MS
        above = bisect_left(sizes, jobs)
        if above == len(sizes):
            return costs[-1]
        if above == 0:
            return max(costs[0] * jobs / sizes[0], LEAST_BATCH_MS)
        share = (jobs - sizes[above - 1]) / (sizes[above] - sizes[above - 1])
        return costs[above - 1] + share * (costs[above] - costs[above - 1])


def _moved(mean: float, value: float) -> float:
    return mean + WEIGHT * (value - mean)


@dataclass(eq=False, slots=True, kw_only=True)
class QueueBacklog:
    """One queue's jobs without an outcome, as currently known to this controller.

    Attributes:
        unsent_jobs: Jobs in this controller that are not sent yet.
        sent_jobs: Jobs sent by this controller, outcome not received.
        sent_batches: The batches of the sent jobs.
        most_sent_jobs: Maximum of `sent_jobs` since the current reading of the pool began.
        other_jobs: Jobs of other controllers at the last reading.
        workers: Ready workers at the last reading.
        pass_ms: Time per job in a forward pass; infinite before the first measurement.
        free_at_ms: When each worker finished its last known batch, Redis's clock, by worker id.
        open_by_caller: Held and sent jobs of callers with an API key, by its name.
    """

    unsent_jobs: int = 0
    sent_jobs: int = 0
    sent_batches: int = 0
    most_sent_jobs: int = 0
    other_jobs: int = 0
    workers: int = 1
    pass_ms: float = inf
    costs: BatchCosts = field(default_factory=BatchCosts)
    free_at_ms: dict[str, float] = field(default_factory=dict)
    open_by_caller: Counter[str] = field(default_factory=Counter)

    def load(self, unsent_samples: int = 0, unawaited_jobs: int = 0) -> Load:
        """The input of `batching`.

        Args:
            unsent_samples: Number of samples in the unsent jobs.
            unawaited_jobs: Number of unsent jobs whose callers wait only for acceptance.
        """
        costs = self.costs
        return Load(
            unsent_jobs=self.unsent_jobs,
            unsent_samples=unsent_samples,
            unawaited_jobs=unawaited_jobs,
            sent_batches=self.sent_batches,
            sent_jobs=self.sent_jobs,
            other_jobs=self.other_jobs,
            workers=self.workers,
            pass_ms=self.pass_ms,
            usual_jobs=costs.usual_jobs,
            batch_ms=costs.batch_ms,
        )

    def send(self, n_jobs: int) -> None:
        """Count a batch of unsent jobs as sent."""
        self.unsent_jobs -= n_jobs
        self.sent_batches += 1
        self.sent_jobs += n_jobs
        self.most_sent_jobs = max(self.most_sent_jobs, self.sent_jobs)

    def close(self, entries: Iterable[JobEntry]) -> None:
        """Count jobs of callers with API keys as no longer open."""
        for entry in entries:
            if entry.owner:
                self.open_by_caller[entry.owner] -= 1
                if self.open_by_caller[entry.owner] <= 0:
                    del self.open_by_caller[entry.owner]

    def expected_wait_ms(self) -> float:
        """Milliseconds until a worker would take a job that arrives now."""
        return expected_wait_ms(self.load())

    def learn(self, batch_id: str, outcome: BatchOutcome) -> None:
        """Learn the duration of batches from a returned batch."""
        ran = len([job for job in outcome.jobs if job.status == "succeeded" or job.status == "failed"])
        if not (ran and outcome.n_samples):
            return
        pass_ms = outcome.inference_ms / ran
        self.pass_ms = pass_ms if self.pass_ms == inf else _moved(self.pass_ms, pass_ms)
        # Measured from the moment when its worker could have started: the time between two batches is part of the cost.
        started_at_ms, ended_at_ms = outcome.started_at_ms, outcome.finished_at_ms
        before_ms = self.free_at_ms.get(outcome.worker_id, 0.0)
        free_at_ms = max(before_ms, ids.accepted_at_ms(batch_id), started_at_ms - LONGEST_PAUSE_MS)
        self.free_at_ms[outcome.worker_id] = ended_at_ms
        self.costs.learn(ran, ended_at_ms - min(free_at_ms, started_at_ms))


class Backlogs:
    """The backlogs of all queues, and the rule for a full queue.

    Args:
        settings: Contains the limits.
        now_s: A monotonic clock.
    """

    def __init__(self, settings: ControllerSettings, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._full: dict[str, FullQueue] = {}
        self._jobs_limit = settings.backlog_limit
        self._fraction = settings.backlog_deadline_fraction
        self._queues: dict[str, QueueBacklog] = {}

    def of(self, queue: str) -> QueueBacklog:
        """The queue's backlog."""
        found = self._queues.get(queue)
        if found is None:
            found = self._queues[queue] = QueueBacklog()
        return found

    def completed(self, event: Completed) -> None:
        """Learn from a completed batch."""
        queue = self._queues.get(event.head.queue) or self.of(event.head.queue)
        queue.learn(event.batch_id, event.outcome)

    def begin_reading(self) -> None:
        """Prepare for a reading of the pool."""
        for each in self._queues.values():
            each.most_sent_jobs = each.sent_jobs

    def refresh(self, records: Iterable[WorkerRecord], jobs: Mapping[str, int]) -> dict[str, float]:
        """Update the backlogs from a reading of the pool.

        Args:
            records: Live workers.
            jobs: Jobs without an outcome by queue, this controller's included.

        Returns:
            Expected wait in ms by queue, for all queues with a ready worker.
        """
        ready = ready_by_queue(records)
        for queue in {*ready, *jobs, *self._queues}:
            each = self.of(queue)
            # Jobs of this controller that changed during the reading must not count as another controller's.
            each.other_jobs = max(0, jobs.get(queue, 0) - each.most_sent_jobs)
            each.workers = max(1, len(ready.get(queue, ())))
            alive = {record.worker_id for record in ready.get(queue, ())}
            each.free_at_ms = {name: at for name, at in each.free_at_ms.items() if name in alive}
            if not each.costs.known:
                _learn_from_records(each.costs, ready.get(queue, ()))
        return {queue: self._queues[queue].expected_wait_ms() for queue in ready}

    def check_room(self, queue: str, deadline_s: float, caller: str = "") -> None:
        """Check that a worker would take a job well before its deadline.

        A full queue still admits callers that have less than their share in it, within separate limits.

        Args:
            deadline_s: Seconds until the job expires.
            caller: Name of the API key; empty where there is none.

        Raises:
            QueueFullError: The wait is too long, or the queue is at its job limit; the error says when to retry.
        """
        backlog = self._queues.get(queue)
        if backlog is None:
            return
        jobs = backlog.unsent_jobs + backlog.sent_jobs + backlog.other_jobs
        longest_s = deadline_s * self._fraction
        if jobs < self._jobs_limit and jobs * backlog.costs.largest_ms <= longest_s * 1000:
            return  # even if each job were a separate batch
        wait_s = backlog.expected_wait_ms() / 1000
        if jobs < self._jobs_limit and wait_s <= longest_s:
            return
        full = self._full.get(queue)
        if full is None:
            full = self._full[queue] = FullQueue(backlog.open_by_caller, self._now_s)
        overflows = (
            jobs >= self._jobs_limit * (1 + OVERFLOW)
            or wait_s > longest_s + (deadline_s - longest_s) * OVERFLOW
        )
        most_jobs = min(self._jobs_limit, jobs * longest_s / wait_s)
        if not overflows and full.is_below_share(caller, most_jobs, n_others=backlog.other_jobs > 0):
            return
        own_jobs = max(jobs - backlog.other_jobs, jobs * LEAST_OWN_SHARE)
        over_jobs_s = wait_s * (jobs + 1 - self._jobs_limit) / jobs
        retry_after_s = full.return_after_s(caller, max(over_jobs_s, wait_s - longest_s), wait_s / own_jobs)
        if jobs >= self._jobs_limit:
            raise QueueFullError(
                f"{jobs} jobs wait in this queue, which is its limit; try again later",
                retry_after_s=retry_after_s,
            )
        raise QueueFullError(
            f"the expected wait of {wait_s:.1f} s exceeds the {longest_s:.1f} s that the job's deadline allows; "
            f"try again later, or with a longer deadline",
            retry_after_s=retry_after_s,
        )


def _learn_from_records(costs: BatchCosts, records: Iterable[WorkerRecord]) -> None:
    """Initialise the costs of a new controller from the workers' records."""
    for record in records:
        jobs = record.jobs_done + record.jobs_failed
        if record.inference_ms.p50 is not None and jobs and record.batches_done:
            costs.learn(max(1.0, jobs / record.batches_done), record.inference_ms.p50 + LEAST_BATCH_MS)
