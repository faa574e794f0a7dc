"""Group commit: jobs that arrive while batches of their queue are in flight share the next batch.

`plan` is a pure function of a queue's `Load`. It says how many unsent jobs are sent now, in how many batches, and
how long the other jobs are held. `dispatch` and the simulation in `benchmarks` call the same function.

A controller sends immediately while at most `ahead` batches of the queue are in flight; the worker finds the extra
ones when it has finished. Otherwise it holds the jobs until a batch returns, the next batch is full, or the hold time
has passed. So an idle pool adds no delay and a busy pool forms batches. Callers that wait only for acceptance are not
delayed while the worker keeps up. If a batch takes a worker long, each worker may have one batch in flight, and the
jobs are divided among the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

import msgspec

LONG_BATCH_MS = 20.0  # many times the overhead of a batch apart from the model
FEW_JOBS = 8
QUICK_PASS_MS = 0.05  # per job: about the controller's own time for a job
MANY_JOBS = 64  # these cost the controller many times the overhead of one more batch
ENOUGH_UNAWAITED = 48  # more jobs hardly reduce the cost per job, but delay the waiting callers


class Limits(msgspec.Struct, frozen=True):
    """Settings of group commit.

    Attributes:
        max_jobs: Maximum number of jobs in a batch.
        max_samples: Maximum number of samples in a batch; a single job may exceed it.
        hold_ms: Minimum time that jobs are held while batches are in flight.
        hold_behind_ms: Maximum hold time, behind a long backlog.
        ahead: Batches that may be in flight in addition to the running ones.
    """

    max_jobs: int
    max_samples: int
    hold_ms: float
    hold_behind_ms: float
    ahead: int


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A controller's unsent jobs and batches in flight for one queue, and the cost of the queue's batches.

    Attributes:
        unawaited_jobs: Number of unsent jobs whose callers wait only for acceptance, not for the outcome.
        sent_batches: Batches without an outcome; `sent_jobs` are in them.
        other_jobs: Jobs of other controllers in the queue.
        workers: Ready workers, at least 1.
        pass_ms: Time per job in a forward pass; infinite before the first measurement.
        usual_jobs: Usual number of jobs in a batch.
        batch_ms: Time that a worker needs for a batch of `usual_jobs` jobs.
    """

    unsent_jobs: int
    unsent_samples: int
    unawaited_jobs: int
    sent_batches: int
    sent_jobs: int
    other_jobs: int
    workers: int
    pass_ms: float
    usual_jobs: float
    batch_ms: Callable[[float], float]


class Plan(msgspec.Struct, frozen=True):
    """What happens to the unsent jobs.

    Attributes:
        sizes: Number of jobs in each batch that is sent now, in order.
        hold_ms: Hold time of the other jobs, unless more jobs or a returning batch change it.
    """

    sizes: list[int]
    hold_ms: float = 0.0


def is_full(jobs: int, samples: int, limits: Limits) -> bool:
    """Whether the unsent jobs fill a batch; `plan` is then called immediately."""
    return jobs >= limits.max_jobs or samples >= limits.max_samples


def plan(load: Load, limits: Limits, samples: Iterable[int], *, is_due: bool) -> Plan:
    """Plan whether the unsent jobs are sent now, and in which batches.

    Called at the end of an event loop iteration, so that requests read in the same iteration share a batch. Also
    called when a batch is full and when a batch returns.

    Args:
        samples: Number of samples of each unsent job.
        is_due: Whether the previously planned hold time has passed.
    """
    is_open = load.sent_batches < _places(load, limits, load.sent_jobs)
    if is_due or is_open or _has_enough_unawaited(load, limits):
        return Plan(_sizes(load, limits, load.unsent_jobs, samples))
    n_full = load.unsent_jobs // limits.max_jobs * limits.max_jobs
    if load.unsent_samples >= limits.max_samples:
        n_full = load.unsent_jobs
    sizes = _sizes(load, limits, n_full, samples) if n_full else []
    return Plan(sizes, _hold_ms(load, limits))


def expected_wait_ms(load: Load) -> float:
    """Milliseconds until a worker would take a job that arrives now: the only definition.

    The number of batches ahead at the usual batch size, times the duration of such a batch, divided by the workers.
    """
    own = load.unsent_jobs + load.sent_jobs
    jobs = own + load.other_jobs
    if not jobs:
        return 0.0
    batches = load.sent_batches + (load.unsent_jobs > 0)
    size = own / batches if batches else load.usual_jobs
    return jobs / size * load.batch_ms(size) / load.workers


def _has_enough_unawaited(load: Load, limits: Limits) -> bool:
    """Whether many jobs wait and the workers soon finish theirs: larger batches would then have no benefit."""
    if load.unawaited_jobs < ENOUGH_UNAWAITED:
        return False
    return load.pass_ms < QUICK_PASS_MS and _hold_ms(load, limits) <= limits.hold_ms


def _places(load: Load, limits: Limits, n_out: int) -> int:
    """Number of batches of the queue that may be in flight: one running batch and `ahead` more.

    If a batch takes long, one running batch per worker. Several workers of a fast model would only get smaller
    batches, which cost more in total. So would a batch ahead for a worker that finishes its jobs sooner than the
    controller answers them.

    Args:
        n_out: Number of jobs in flight.
    """
    busy = load.workers if _takes_long(load) else 1
    is_quick = n_out >= FEW_JOBS and load.pass_ms < QUICK_PASS_MS
    return busy + (0 if is_quick else limits.ahead)


def _takes_long(load: Load) -> bool:
    return load.batch_ms(max(load.unsent_jobs, 1)) > LONG_BATCH_MS


def _hold_ms(load: Load, limits: Limits) -> float:
    # Behind a long backlog, holding jobs costs nothing and makes batches larger. Batches closed as fast as on an
    # idle queue would be small, and a saturated queue would become slower with each round.
    return max(min(expected_wait_ms(load) / 4, limits.hold_behind_ms), limits.hold_ms)


def _sizes(load: Load, limits: Limits, n_jobs: int, samples: Iterable[int]) -> list[int]:
    """Number of jobs in each batch of the first `n_jobs` unsent jobs: within the limits, and at least one."""
    if n_jobs == 1:
        return [1]
    share = _share(load, limits, n_jobs)
    if load.unsent_samples <= limits.max_samples:
        whole, rest = divmod(n_jobs, share)
        return [share] * whole + [rest] * (rest > 0)
    sizes, size, in_batch = [], 0, 0
    for _, own in zip(range(n_jobs), samples, strict=False):
        if size and (size == share or in_batch + own > limits.max_samples):
            sizes.append(size)
            size = in_batch = 0
        size += 1
        in_batch += own
    return [*sizes, size]


def _share(load: Load, limits: Limits, n_jobs: int) -> int:
    """Number of jobs in a batch: all, unless several batches are better.

    If one batch would occupy a worker for long, the other workers share the jobs. If many jobs wait and few are in
    flight, two batches overlap: one runs while the callers of the other are answered.
    """
    n_out = n_jobs + load.sent_jobs
    share: float = n_jobs
    if load.workers > 1 and _takes_long(load):
        fair = n_out / _places(load, limits, n_out)
        share = max(fair, n_jobs * LONG_BATCH_MS / load.batch_ms(n_jobs))
    elif n_jobs >= MANY_JOBS:
        fair = n_out / _places(load, limits, n_out)
        share = n_jobs / max(round(n_jobs / fair), 1)
    return min(ceil(share), limits.max_jobs)
