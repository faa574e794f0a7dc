"""Group commit: jobs that arrive while batches of their queue are out travel together in the next one.

`decide` is a pure function of a queue's `Load`: which of the waiting jobs are sent now, in how many batches, and how
long the others are held. `dispatch` asks and does; the simulation in `benchmarks` asks the same function.

A controller sends at once until one batch of the queue is out and `ahead` more, which the worker finds when it has
finished; else it holds the jobs until a batch returns, the next batch is full, or a time has passed. So an idle pool
adds no delay, and a busy one batches by itself. Callers who wait for acceptance alone are not held up for a worker that
keeps up with them. Where a batch takes a worker long, one may be out for each worker, and the jobs are divided among
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil

import msgspec

LONG_BATCH_MS = 20.0  # many times what a batch costs beside the model
FEW_JOBS = 8
QUICK_PASS_MS = 0.05  # a job: what it takes the controller
MANY_JOBS = 64  # that cost the controller many times what one more batch does
ENOUGH_RECEIPTS = 48  # more of them make a job hardly cheaper, and delay the callers who wait for them


class Limits(msgspec.Struct, frozen=True):
    """Settings of group commit.

    Attributes:
        max_jobs: Of a batch.
        max_samples: Of a batch, unless it is one job.
        hold_ms: The least time that jobs are held while batches are out.
        hold_behind_ms: The most, behind a long backlog.
        ahead: Batches that may be out beside those that workers run.
    """

    max_jobs: int
    max_samples: int
    hold_ms: float
    hold_behind_ms: float
    ahead: int


class Load(msgspec.Struct, frozen=True):
    """What waits for a queue in one controller, what it has out, and what batches of the queue cost.

    Attributes:
        waiting_receipts: Of the waiting jobs, those whose callers wait for acceptance alone.
        sent_batches: Batches without an outcome; `sent_jobs` are in them.
        other_jobs: Jobs of other controllers in the queue.
        workers: Ready workers, at least 1.
        pass_ms: What a job takes of its batch's forward pass; infinite before any is known.
        usual_jobs: Jobs of a batch.
        batch_ms: What a batch of so many jobs takes a worker.
    """

    waiting_jobs: int
    waiting_samples: int
    waiting_receipts: int
    sent_batches: int
    sent_jobs: int
    other_jobs: int
    workers: int
    pass_ms: float
    usual_jobs: float
    batch_ms: Callable[[float], float]


class Decision(msgspec.Struct, frozen=True):
    """What becomes of the waiting jobs.

    Attributes:
        sizes: Jobs of each batch that is sent now, in their order.
        hold_ms: How long the others are held, unless more jobs or a returning batch change that.
    """

    sizes: list[int]
    hold_ms: float = 0.0


def is_full(jobs: int, samples: int, limits: Limits) -> bool:
    """Whether so many waiting jobs fill a batch, so that `decide` is to be asked at once."""
    return jobs >= limits.max_jobs or samples >= limits.max_samples


def decide(load: Load, limits: Limits, samples: Iterable[int], *, is_due: bool) -> Decision:
    """Whether the waiting jobs are sent now, and in which batches.

    Asked at the end of a turn of the event loop, so that requests that are read in the same turn share a batch; when a
    batch is full; and when one returns.

    Args:
        samples: Of each waiting job.
        is_due: Whether they have been held for as long as was decided before.
    """
    if is_due or _is_open(load, limits) or _has_enough_receipts(load, limits):
        return Decision(_sizes(load, limits, load.waiting_jobs, samples))
    n_full = load.waiting_jobs // limits.max_jobs * limits.max_jobs
    if load.waiting_samples >= limits.max_samples:
        n_full = load.waiting_jobs
    sizes = _sizes(load, limits, n_full, samples) if n_full else []
    return Decision(sizes, _hold_ms(load, limits))


def expected_wait_ms(load: Load) -> float:
    """Milliseconds until a worker would take a job that came now: the one definition.

    The jobs ahead, in batches as they are now, times what such batches take, divided by the workers.
    """
    own = load.waiting_jobs + load.sent_jobs
    jobs = own + load.other_jobs
    if not jobs:
        return 0.0
    batches = load.sent_batches + (load.waiting_jobs > 0)
    size = own / batches if batches else load.usual_jobs
    return jobs / size * load.batch_ms(size) / load.workers


def _has_enough_receipts(load: Load, limits: Limits) -> bool:
    """Whether many wait, and the workers are soon done with what they have: larger batches would help nobody."""
    if load.waiting_receipts < ENOUGH_RECEIPTS:
        return False
    return load.pass_ms < QUICK_PASS_MS and _hold_ms(load, limits) <= limits.hold_ms


def _is_open(load: Load, limits: Limits) -> bool:
    return load.sent_batches < _places(load, limits, load.sent_jobs)


def _places(load: Load, limits: Limits, n_out: int) -> int:
    """Batches of the queue that may be out: one in hand and those ahead; one in every hand where one takes long.

    Several workers of a fast model would only be given smaller batches, which cost everybody more. So would one worker
    that had a batch ahead of those it works off sooner than the controller answers them.

    Args:
        n_out: Jobs in them.
    """
    busy = load.workers if _takes_long(load) else 1
    is_quick = n_out >= FEW_JOBS and load.pass_ms < QUICK_PASS_MS
    return busy + (0 if is_quick else limits.ahead)


def _takes_long(load: Load) -> bool:
    return load.batch_ms(max(load.waiting_jobs, 1)) > LONG_BATCH_MS


def _hold_ms(load: Load, limits: Limits) -> float:
    # Behind a long backlog nothing is lost by waiting for company, and much is won: batches that were closed
    # as fast as on an idle queue would be small, and a queue at its limit slower with each round.
    return max(min(expected_wait_ms(load) / 4, limits.hold_behind_ms), limits.hold_ms)


def _sizes(load: Load, limits: Limits, n_jobs: int, samples: Iterable[int]) -> list[int]:
    """Jobs of each batch of the first `n_jobs` waiting ones: within the limits, and at least one."""
    share = _share(load, limits, n_jobs)
    if load.waiting_samples <= limits.max_samples:
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
    """Jobs of a batch: all, unless several batches are better.

    Where one would keep a worker busy for long, the others are to share it. And where many wait and little is
    out, two overlap: one runs while the other's callers are answered.
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
