"""The short form of every row of `make faults`: under load, what was accepted is accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import faults.rows  # noqa: F401  (importing it registers the rows)
from faults import fault_registry, trial
from faults.fault_pool import Pool, PoolPlan, open_pool
from faults.table import FAULTS, Fault, by_plan
from tests.conftest import NewRegistry


@pytest.fixture(scope="module")
def models(new_registry: NewRegistry) -> Path:
    return new_registry(fault_registry.lay_out)


class Pools:
    """Keeps one pool: that of the row before, where the next row has an equal plan."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._stack = ExitStack()
        self._pool: Pool | None = None

    def open(self, plan: PoolPlan) -> Pool:
        if self._pool is None or self._pool.plan != plan:
            self.close()
            self._pool = self._stack.enter_context(open_pool(plan, self._models, short=True))
        return self._pool

    def close(self) -> None:
        self._pool = None
        self._stack.close()


@pytest.fixture(scope="module")
def pools(models: Path) -> Iterator[Pools]:
    made = Pools(models)
    yield made
    made.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "fault", [each for each in by_plan(FAULTS.values()) if each.in_tests], ids=lambda each: each.name
)
def test_every_accepted_job_is_accounted_for_under(fault: Fault, pools: Pools) -> None:
    try:
        row = asyncio.run(trial.run(fault, pools.open(fault.plan), short=True))
    except trial.ToolMissingError as missing:
        pytest.skip(str(missing))
    assert not row.broken, f"{row.broken}; {row.cells()}"
