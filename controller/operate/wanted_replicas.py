"""Number of workers that each version needs, for autoscalers: in `GET /scale` and the metrics."""

from __future__ import annotations

from app.replicas import replicas_for
from app.worker_record import ready_by_queue
from controller.endpoints import RETIRED
from controller.pool_watcher import PoolView


def live_replicas(view: PoolView, queue: str) -> int:
    """Ready workers of a queue."""
    return len(ready_by_queue(view.records).get(queue, ()))


def expected_wait_s(view: PoolView, queue: str) -> float:
    """Expected wait of a job that arrives now; 0 without a ready worker."""
    candidate = view.snapshot.by_number.get(view.numbers.get(queue, 0))
    return candidate.expected_wait_ms / 1000 if candidate else 0.0


def wanted_replicas(view: PoolView, queue: str, longest_wait_s: float) -> int:
    """Workers with which a new job waits at most `longest_wait_s`.

    At least one, because a version in service answers at once; none for a retired version without jobs.
    """
    jobs = view.backlog_jobs.get(queue, 0)
    work_s = live_replicas(view, queue) * expected_wait_s(view, queue)
    exclusion = view.snapshot.excluded.get(queue)
    is_retired = exclusion is not None and exclusion.reason == RETIRED
    return max(replicas_for(work_s, jobs, longest_wait_s), 0 if is_retired else 1)
