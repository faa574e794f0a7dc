from __future__ import annotations

import pytest

from app.replicas import replicas_for
from app.settings import PoolSettings, load


@pytest.mark.parametrize(
    ("work_s", "jobs", "replicas"),
    [(0.0, 0, 0), (0.0, 5, 1), (0.2, 5, 1), (1.0, 5, 1), (2.4, 5, 3), (20.0, 1000, 20)],
)
def test_as_many_replicas_are_wanted_as_bring_the_wait_to_the_longest(
    work_s: float, jobs: int, replicas: int
) -> None:
    assert replicas_for(work_s, jobs, 1.0) == replicas


def test_former_name_of_the_longest_wait_counts_unless_the_present_one_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODELYARD_SCALE_TARGET_WAIT_S", "7")
    assert load(PoolSettings).scale_wait_s == 7
    monkeypatch.setenv("MODELYARD_SCALE_WAIT_S", "3")
    assert load(PoolSettings).scale_wait_s == 3
