"""How many workers the load of a version needs: what `GET /scale` and the metrics tell autoscalers."""

from __future__ import annotations

import math


def wanted_replicas(live: int, jobs: int, wait_s: float, target_s: float) -> int:
    """Workers with which the expected wait would be `target_s`; at least one while there are jobs."""
    return max(math.ceil(live * wait_s / target_s), min(jobs, 1))
