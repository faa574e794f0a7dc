"""Faults of workers: killed, cut off, suspended or hung, also by the jobs that they run."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from app.ledger.wakeup_message import batch_id_of
from app.redis import keys
from app.worker_record import WorkerRecord
from faults import fault_models
from faults.fault_pool import TIGHT_LIMITS, Supervised, runs
from faults.job_load import Recipe, good_jobs, job
from faults.rows.redis import PLAN
from faults.table import fault
from faults.trial import RATE_PER_S, Trial

BATCH_S = 0.2
LIMIT_S = 2  # of TIGHT_LIMITS
N_GOOD = 500
N_GOOD_SHORT = 100
RUN_AGAIN_S = 5.0
SETTLE_S = 0.05
WORKED_S = 1.0  # a worker killed as soon as it begins looks as if its job had crashed it


@fault(
    "worker-killed",
    "SIGKILL of a busy worker every 2 s, 30 times; two replicas",
    TIGHT_LIMITS,
)
async def worker_killed(trial: Trial) -> None:
    """At times no worker is alive, but another is forked at once and claims the batch within `RUN_AGAIN_S`."""
    async with trial.load(good_jobs(BATCH_S)):
        taken_again_s = await each_2_s(trial, 1 if trial.short else 30, signal.SIGKILL)
    note_taken_again(trial, taken_again_s)
    late = [f"{each:.1f}" for each in taken_again_s if each > RUN_AGAIN_S]
    trial.require(trial.short or not late, f"not within {RUN_AGAIN_S:g} s, but after {', '.join(late)} s")


# Its short form would equal the row before.
@fault(
    "replica-killed",
    "SIGKILL of a busy worker while its replica is alive, 15 times",
    TIGHT_LIMITS,
    in_tests=False,
)
async def replica_killed(trial: Trial) -> None:
    """The replica runs the dead worker's batch within `RUN_AGAIN_S`; every second time the supervisor is killed too."""
    async with trial.load(good_jobs(BATCH_S)):
        taken_again_s = []
        for number in range(1 if trial.short else 15):
            await trial.until(lambda: all(map(trial.pool.is_ready, trial.pool.workers)), "both live", 90)
            taken_again_s += await each_2_s(trial, 1, signal.SIGKILL, whole=number % 2 == 1)
    note_taken_again(trial, taken_again_s)
    late = [f"{each:.1f}" for each in trial.row.recoveries_s if each > RUN_AGAIN_S]
    trial.require(not late, f"not within {RUN_AGAIN_S:g} s, but after {', '.join(late)} s")


# The tests stop a worker under load in the row `roll`.
@fault(
    "worker-terminated",
    "SIGTERM of a busy worker every 2 s for 20 s; two replicas",
    TIGHT_LIMITS,
    in_tests=False,
)
async def worker_terminated(trial: Trial) -> None:
    """It finishes its batch, takes no other, and exits with status 0."""
    before = {worker.name: len(worker.exits) for worker in trial.pool.workers}
    async with trial.load(good_jobs(BATCH_S)):
        await each_2_s(trial, 1 if trial.short else 10, signal.SIGTERM)
    for worker in trial.pool.workers:
        statuses = [status for _, status in worker.exits[before[worker.name] :]]
        trial.require(not any(statuses), f"{worker.name} ended with {statuses} when told to stop")


@fault(
    "message-lost",
    "loss of a wake-up message between BRPOP and the claim",
    PLAN,
)
async def message_lost(trial: Trial) -> None:
    """The connection is cut, or the workers killed as well: the reconciler finds the batch and sends it again."""
    pool = trial.pool
    async with trial.load(good_jobs(BATCH_S)):
        for number in range(1 if trial.short else 10):
            await trial.until(lambda: all(map(pool.is_ready, pool.workers)), "all workers are ready", 60)
            await cut_once(trial, kill=number % 2 == 0)


async def cut_once(trial: Trial, *, kill: bool) -> None:
    """Lose one message on its way to a worker, and time its batch until the outcome."""
    lost: list[tuple[str, float]] = []
    serving = [record.pid for record in map(trial.pool.serving, trial.pool.workers) if record]

    def is_message(answer: bytes) -> bool:
        batch = batch_id_of(answer)  # None if its end has not arrived yet
        if not batch or not answer.startswith(b"*2\r\n$") or trial.pool.queue().encode() not in answer[:200]:
            return False
        for pid in serving if kill else ():
            os.kill(pid, signal.SIGKILL)
        lost.append((batch, time.monotonic()))
        return True

    trial.pool.proxy.cut_at(is_message)
    ((batch, cut_at),) = await trial.until(lambda: lost, "a message is on its way to a worker", 60)
    trial.recovered(await outcome_of(trial, batch) - cut_at)


@fault("worker-stopped", "SIGSTOP of a busy worker for 30 s, then SIGCONT", PLAN)
async def worker_stopped(trial: Trial) -> None:
    """Another worker runs its batch, and its late outcome is refused."""
    worker = trial.pool.workers[0]
    async with trial.load(good_jobs(BATCH_S)):
        batch, pid = await trial.until(lambda: stopped_with(trial, worker), "it is stopped in mid-batch", 60)
        stopped_at = time.monotonic()
        try:
            trial.recovered(await outcome_of(trial, batch) - stopped_at)
            trial.require(batch != held_by(trial, worker), "the stopped worker still holds its batch")
            await asyncio.sleep(0 if trial.short else 30 - (time.monotonic() - stopped_at))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await trial.until(lambda: held_by(trial, worker), "the woken worker runs another batch", 60)


@fault("model-hangs", f"forward pass that never returns, in Python; limit {LIMIT_S} s", TIGHT_LIMITS)
async def model_hangs(trial: Trial) -> None:
    """The pass is interrupted, the worker goes on, and the other jobs of the batch succeed."""
    before = [trial.pool.serving(worker) for worker in trial.pool.workers]
    await hang(trial, fault_models.HANGS, "timed_out", 1 if trial.short else 5)
    trial.require(all(record and runs(record.pid) for record in before), "a worker ended")


@fault(
    "model-hangs-native", f"forward pass that never returns, in native code; limit {LIMIT_S} s", TIGHT_LIMITS
)
async def model_hangs_native(trial: Trial) -> None:
    """Nothing can interrupt it: the serving process notes the job and exits."""
    await hang(trial, fault_models.HANGS_NATIVE, "timed_out", 1 if trial.short else 3)


@fault(
    "model-hangs-with-gil",
    f"forward pass that never returns and holds the GIL; limit {LIMIT_S} s",
    TIGHT_LIMITS,
    in_tests=False,
)
async def model_hangs_with_gil(trial: Trial) -> None:
    """Heartbeats stop and the process exits; the next serving process knows the job."""
    await hang(trial, fault_models.HANGS_WITH_GIL, "timed_out", 1 if trial.short else 3)


async def hang(trial: Trial, behaviour: int, failure: str, times: int) -> None:
    """Post hanging jobs among good ones, one after the other, and time how long each takes to its outcome."""
    async with trial.load(good_jobs(BATCH_S)):
        await asyncio.sleep(0.5)
        for _ in range(times):
            posted_at = time.monotonic()
            batch = await trial.submit(job(0, behaviour, failure=failure))
            trial.recovered(await outcome_of(trial, batch) - posted_at)


@fault("job-kills-worker", f"job that always crashes its worker, among {N_GOOD} good jobs", TIGHT_LIMITS)
async def job_kills_worker(trial: Trial) -> None:
    """Abort, failed allocation, SIGKILL: the job is quarantined after three attempts, and all others succeed."""
    for behaviour in (
        (fault_models.ABORTS,)
        if trial.short
        else (fault_models.ABORTS, fault_models.OUT_OF_MEMORY, fault_models.KILLED)
    ):
        crashes = n_crashes(trial)
        jobs = killer_among_good_jobs(behaviour, N_GOOD_SHORT if trial.short else N_GOOD)
        async with trial.load(jobs, rate_per_s=RATE_PER_S) as load:
            await load.finished()
        await settled(trial)
        trial.note(f"{n_crashes(trial) - crashes} workers crashed")
        trial.require(n_crashes(trial) - crashes == 3, "the job did not crash exactly three workers")
        await asyncio.to_thread(trial.pool.wait_until_well)


def killer_among_good_jobs(behaviour: int, n_good: int) -> Iterator[Recipe]:
    """Jobs that succeed, and one in the middle that kills its worker."""
    for number in range(n_good):
        yield job(number, seconds=BATCH_S)
        if number == n_good // 2:
            yield job(0, behaviour, failure="job_quarantined")


@fault("bad-sample", "model exception for every 20th job", TIGHT_LIMITS)
async def bad_sample(trial: Trial) -> None:
    """The job fails alone; the others of its batch succeed."""
    async with trial.load(
        job(n, fault_models.RAISES, BATCH_S, "model_failed") if n % 20 == 7 else job(n, seconds=BATCH_S)
        for n in count()
    ):
        await asyncio.sleep(2 if trial.short else 20)


async def each_2_s(trial: Trial, times: int, number: int, *, whole: bool = False) -> list[float]:
    """Signal a worker that runs a batch, and time the batch until its outcome.

    Args:
        whole: Whether SIGKILL goes to the supervisor rather than to the serving process. SIGTERM always goes to the
            supervisor.

    Returns:
        For SIGKILL, the seconds until another worker claimed each batch.
    """
    waiting: list[asyncio.Task[None]] = []
    at_work_since_s: dict[int, float] = {}
    taken_again_s: list[float] = []

    async def time_outcome(batch: str, since_s: float, dead: bytes | None) -> None:
        if number == signal.SIGKILL:
            over, what = trial.witness.heard, f"another worker has claimed batch {batch}"
            await trial.until(lambda: owner(trial, batch) not in (dead, None) or batch in over, what, 60)
            taken_again_s.append(time.monotonic() - since_s)
        trial.recovered(await outcome_of(trial, batch) - since_s)

    for _ in range(times):
        next_s = time.monotonic() + 2
        # A worker killed a moment too late has finished its batch: no recovery is timed.
        batch, worker = await trial.until(
            lambda: running_batch(trial, at_work_since_s), "a worker runs a batch", 60
        )
        with suppress(ProcessLookupError):  # it has just exited after an earlier signal
            os.kill(worker.pid if number == signal.SIGKILL and not whole else worker.main_pid, number)
        signalled_at = time.monotonic()
        await asyncio.sleep(SETTLE_S)
        dead = owner(trial, batch)
        if number != signal.SIGKILL or dead:
            waiting.append(asyncio.create_task(time_outcome(batch, signalled_at, dead)))
        await asyncio.sleep(max(0, next_s - time.monotonic()))
    await asyncio.gather(*waiting)
    return taken_again_s


def owner(trial: Trial, batch: str) -> bytes | None:
    """Id of the worker that has claimed a batch; None if the batch is queued or has its outcome."""
    found: bytes | None = trial.pool.client.hget(keys.running(trial.pool.queue()), batch)
    return found


def note_taken_again(trial: Trial, after_s: list[float]) -> None:
    """Note how soon a live worker claimed a dead worker's batch."""
    if after_s:
        middle, longest = statistics.median(after_s), max(after_s)
        trial.note(f"claimed by another worker after {middle:.1f} s (median), {longest:.1f} s (maximum)")


def running_batch(trial: Trial, at_work_since_s: dict[int, float]) -> tuple[str, WorkerRecord] | None:
    """A running batch and its worker.

    Args:
        at_work_since_s: By id of a serving process, when it was first seen at work; it is spared for `WORKED_S`.
    """
    now_s = time.monotonic()
    alive = [record for record in map(trial.pool.serving, trial.pool.workers) if record]
    by_id = {record.worker_id: record for record in alive}
    # Last, as a batch is soon finished.
    running = trial.pool.client.hgetall(keys.running(trial.pool.queue()))
    for batch, owner in running.items():
        record = by_id.get(owner.decode())
        if record and now_s - at_work_since_s.setdefault(record.pid, now_s) > WORKED_S:
            return batch.decode(), record
    return None


def held_by(trial: Trial, worker: Supervised) -> str | None:
    """The batch that a worker has claimed and not finished, or None."""
    record = trial.pool.serving(worker)
    own = record.worker_id if record else None
    running = trial.pool.client.hgetall(keys.running(trial.pool.queue()))
    return next((batch.decode() for batch, owner in running.items() if owner.decode() == own), None)


def stopped_with(trial: Trial, worker: Supervised) -> tuple[str, int] | None:
    """Suspend a worker's serving process; return its batch and its process id.

    None, and the process resumes, if it holds no batch.
    """
    record = trial.pool.serving(worker)
    if record and held_by(trial, worker):
        os.kill(record.pid, signal.SIGSTOP)
        time.sleep(SETTLE_S)  # until Redis has received what the process sent
        if batch := held_by(trial, worker):
            return batch, record.pid
        os.kill(record.pid, signal.SIGCONT)
    return None


async def outcome_of(trial: Trial, batch: str) -> float:
    """When the outcome of a batch was written (`time.monotonic()`)."""
    await trial.until(lambda: trial.witness.heard.get(batch), f"batch {batch} has its outcome", 60)
    return trial.witness.heard[batch][0]


async def settled(trial: Trial) -> None:
    """Return once no job waits for an outcome."""
    await trial.until(lambda: not trial.pool.backlog(), "every job has its outcome", 90)


def n_crashes(trial: Trial) -> int:
    """Crashes so far of serving processes, which their supervisor logs, and of whole workers."""
    logs = [worker.log.read_text(errors="replace") for worker in trial.pool.workers]
    ends = [status for worker in trial.pool.workers for _, status in worker.exits]
    return sum(log.count("; starting another") for log in logs) + sum(status != 0 for status in ends)
