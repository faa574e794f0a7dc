"""Number of workers that the load of a version needs: pure functions, and the readings for them.

More workers are started as soon as jobs would wait too long. At most half of them are stopped at a time, when fewer
have been enough for a while.
"""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from app.pool_file import NamedVersion
from app.redis import keys
from app.replicas import replicas_for
from app.server_errors import ModelyardError
from app.settings import PoolSettings
from app.worker_record import ready_by_queue, records_of_host
from cli.local_pool import leftovers
from cli.local_pool.desired_state import Target
from cli.local_pool.free_memory import free_bytes

BUSY_SHARE = 0.7  # of the time; workers that are busier than that are not stopped
RATE_S = 5.0  # over which throughput is measured
ROOM = 1.5  # free memory that a further worker needs, in sizes of a present one


@dataclass(frozen=True)
class Sample:
    """The load of a version at one moment.

    Attributes:
        at_s: `time.monotonic()`.
        jobs: Jobs without an outcome.
        jobs_done: Jobs that its workers on this machine have ended since they started.
        busy: Those workers that run a batch.
    """

    at_s: float
    jobs: int
    jobs_done: int
    busy: int


@dataclass(frozen=True)
class Need:
    """The workers that a version needed at one moment."""

    at_s: float
    workers: int


def jobs_per_worker_s(samples: Sequence[Sample]) -> float | None:
    """Jobs that a busy worker ends in a second; None if no job ended, or no worker was seen busy."""
    if len(samples) < 2:
        return None
    took_s, done = samples[-1].at_s - samples[0].at_s, samples[-1].jobs_done - samples[0].jobs_done
    busy = sum(each.busy for each in samples) / len(samples)
    return done / took_s / busy if done > 0 and busy and took_s > 0 else None


def needed_workers(samples: Sequence[Sample], rate: float | None, present: int, longest_wait_s: float) -> int:
    """The workers that a version needs now.

    Args:
        samples: The last ones, the newest at the end.
        rate: Jobs that a busy worker ends in a second; None if unknown.
        present: Its workers.
        longest_wait_s: Seconds that a new job may be expected to wait.
    """
    jobs = samples[-1].jobs
    busy = sum(each.busy for each in samples) / len(samples)
    held = min(present, math.ceil(busy / BUSY_SHARE))  # being busy keeps workers, but starts none
    if rate is None:
        return present if jobs else held
    return max(held, replicas_for(jobs / rate, jobs, longest_wait_s))


def wanted_workers(needs: Sequence[Need], present: int, bounds: tuple[int, int], calm_s: float) -> int:
    """The workers to run. At most half of them are stopped at a time: load that returns soon finds the others.

    Args:
        needs: The last needs, the newest at the end.
        present: The present workers.
        bounds: From and to.
        calm_s: Seconds for which fewer workers must have been enough before any is stopped.
    """
    low, high = bounds
    wanted, most_needed = present, max(each.workers for each in needs)
    if needs[-1].workers > present:
        wanted = needs[-1].workers
    elif needs[-1].at_s - needs[0].at_s >= calm_s and most_needed < present:
        wanted = max(most_needed, present // 2)
    return min(max(wanted, low), high)


def within_memory(wanted: int, present: int, n_starting: int, free_bytes: float, size_bytes: int) -> int:
    """The wanted workers as far as there is memory for them, and at least the present ones.

    Args:
        n_starting: Those of the present ones that have not yet taken their memory.
        free_bytes: Free memory; infinite if unknown.
        size_bytes: Memory of a present worker; 0 if unknown.
    """
    if not size_bytes or math.isinf(free_bytes):
        return wanted
    return min(wanted, max(present, present + int(free_bytes / (ROOM * size_bytes)) - n_starting))


@dataclass
class _History:
    samples: deque[Sample] = field(default_factory=deque)
    needs: deque[Need] = field(default_factory=deque)
    rate: float | None = None


class Scaler:
    """Decides how many workers each version has; remembers the load of the last minutes.

    Attributes:
        held: Workers of the versions that need more than the machine has memory for.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self._settings = settings
        self.held: dict[NamedVersion, int] = {}
        self._histories: dict[NamedVersion, _History] = {}

    def counts(
        self,
        targets: Iterable[Target],
        present: Mapping[NamedVersion, Sequence[str]],
        ready: Container[str],
    ) -> dict[NamedVersion, int]:
        """The wanted workers of the versions whose number may vary.

        Args:
            targets: The versions to serve.
            present: Names of the workers of each version.
            ready: Names of the ready ones.
        """
        varying = {each.named: each for each in targets if each.replicas[0] < each.replicas[1]}
        self._histories = {named: self._histories.get(named, _History()) for named in varying}
        samples = self._samples(varying) if varying else {}
        counts = {}
        for named, target in varying.items():
            names = present.get(named, ())
            wanted = len(names)
            if named in samples and names:
                history = self._histories[named]
                wanted = self._wanted(history, samples[named], len(names), target.replicas)
                # What they are good for shows when they are ready.
                if not all(name in ready for name in names):
                    wanted = max(wanted, min(len(names), target.replicas[1]))
                    history.needs.clear()
            counts[named] = wanted
        self.held = self._held_by_memory(counts, present, ready)
        return counts | self.held

    def _held_by_memory(
        self,
        counts: Mapping[NamedVersion, int],
        present: Mapping[NamedVersion, Sequence[str]],
        ready: Container[str],
    ) -> dict[NamedVersion, int]:
        """The workers of the versions that get fewer than they need."""
        growing = [named for named in counts if 0 < len(present.get(named, ())) < counts[named]]
        held: dict[NamedVersion, int] = {}
        if not growing:
            return held
        free = free_bytes()
        size_of = leftovers.memory_bytes(
            self._settings.state_dir, {name for named in growing for name in present[named]}
        )
        for named in growing:
            names = present[named]
            n_starting = sum(name not in ready for name in names)
            size_bytes = max(size_of[name] for name in names)
            fitting = within_memory(counts[named], len(names), n_starting, free, size_bytes)
            free -= (fitting - len(names) + n_starting) * ROOM * size_bytes
            if fitting < counts[named]:
                held[named] = fitting
        return held

    def _wanted(self, history: _History, sample: Sample, present: int, bounds: tuple[int, int]) -> int:
        samples, needs = history.samples, history.needs
        if samples and sample.jobs_done < samples[-1].jobs_done:  # a worker has ended, with its count
            samples.clear()
        samples.append(sample)
        while samples[0].at_s < sample.at_s - RATE_S:
            samples.popleft()
        history.rate = jobs_per_worker_s(samples) or history.rate
        workers = needed_workers(samples, history.rate, present, self._settings.scale_wait_s)
        needs.append(Need(sample.at_s, workers))
        calm_s = self._settings.scale_down_s
        while len(needs) > 1 and needs[1].at_s <= sample.at_s - calm_s:
            needs.popleft()
        wanted = wanted_workers(needs, present, bounds, calm_s)
        if wanted != present:  # the next change is judged by what happens after this one
            needs.clear()
        return wanted

    def _samples(self, versions: Iterable[NamedVersion]) -> dict[NamedVersion, Sample]:
        """Samples of versions; none while Redis does not answer."""
        from app.redis.client import connect_url, ledger_errors

        queues = {keys.queue_name(*named): named for named in versions}
        try:
            url, timeout_s = self._settings.effective_redis_url, self._settings.redis_timeout_s
            with ledger_errors(), connect_url(url, timeout_s) as connection:
                records = records_of_host(connection, socket.gethostname())
                backlogs = cast(list[bytes | None], connection.hmget(keys.BACKLOG, list(queues)))
        except ModelyardError:
            return {}
        ready = ready_by_queue(records)
        groups = {queue: ready.get(queue, []) for queue in queues}
        now_s = time.monotonic()
        return {
            queues[queue]: Sample(
                now_s,
                max(0, int(backlog or 0)),
                sum(each.jobs_done + each.jobs_failed for each in groups[queue]),
                sum(bool(each.running_batch) for each in groups[queue]),
            )
            for queue, backlog in zip(queues, backlogs, strict=True)
        }
