"""What each process spends on a batch and on each job in it: the numbers that the model is calibrated with."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec


@dataclass(frozen=True)
class Cost:
    """So much for a batch and so much for each of its jobs: µs of CPU time, or bytes."""

    batch: float
    job: float

    def of(self, n_jobs: float) -> float:
        """That of a batch of so many jobs."""
        return self.batch + n_jobs * self.job


@dataclass(frozen=True)
class Costs:
    """Costs of all processes of a pool.

    Attributes:
        controller: µs of CPU time, as are `worker` and `redis`.
        to_redis: Bytes that Redis reads, over all steps of a batch.
        from_redis: Bytes that Redis writes.
        client_us: CPU time of the load generator per request.
        wake_us: From a message on loopback to the moment at which its sleeping reader runs.
    """

    controller: Cost
    worker: Cost
    redis: Cost
    to_redis: Cost
    from_redis: Cost
    client_us: float
    wake_us: float


def read(path: Path) -> tuple[Costs, dict[str, Any]]:
    """The costs, and what the file says about how they were measured."""
    told = json.loads(path.read_text())
    return msgspec.convert(told.pop("costs"), Costs), told


def write(path: Path, costs: Costs, about: dict[str, Any]) -> None:
    """Write what `read` reads."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"costs": asdict(costs), **about}, indent=1) + "\n")
