"""Workers that the load of a version needs: the one formula of `modelyard up`, `GET /scale` and the metrics."""

from __future__ import annotations

import math


def replicas_for(work_s: float, jobs: int, longest_wait_s: float) -> int:
    """Workers with which a new job waits at most `longest_wait_s`; at least one while there are jobs.

    Args:
        work_s: Seconds that one worker would need for the jobs that wait.
        jobs: Jobs without an outcome.
    """
    return max(math.ceil(work_s / longest_wait_s), min(jobs, 1))
