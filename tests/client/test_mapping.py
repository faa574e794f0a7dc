"""Many inputs: in order or as they come, a bounded number at a time, taken when they are needed."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from modelyard import AsyncClient, Client
from modelyard.errors import ConfigurationError, ParameterError, QueueFullError
from modelyard.mapping import run_all, run_all_async
from tests.client.conftest import PROMPT

if TYPE_CHECKING:
    from tests.client.conftest import ControllerDouble

DIGITS = [(place * 7) % 10 for place in range(30)]


def samples(taken: list[int] | None = None) -> Iterator[Any]:
    for place, digit in enumerate(DIGITS):
        if taken is not None:
            taken.append(place)
        yield np.full((1, 1), digit / 10)


def collected(url: str, kind: str, method: str, inputs: Any, **options: Any) -> list[Any]:
    if kind == "sync":
        with Client(url, retry=PROMPT) as client:
            return list(getattr(client, method)(inputs, **options))

    async def collect() -> list[Any]:
        async with AsyncClient(url, retry=PROMPT) as client:
            return [each async for each in getattr(client, method)(inputs, **options)]

    return asyncio.run(collect())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_every_input_has_its_job(url: str, double: ControllerDouble, kind: str) -> None:
    jobs = collected(url, kind, "map", samples(), concurrency=4, model="m", version="champion")
    assert [job.predictions[0].predicted for job in jobs] == DIGITS
    assert all(query["version"] == "champion" for _, _, query, _ in double.requests)
    pairs = collected(url, kind, "map_unordered", samples(), concurrency=4)
    assert sorted((place, job.predictions[0].predicted) for place, job in pairs) == list(enumerate(DIGITS))


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_ends_the_iteration_and_names_its_input(
    url: str, double: ControllerDouble, kind: str
) -> None:
    double.refuse_after(5, 429, "queue_full")
    double.refuse(429, "queue_full", times=200)
    taken: list[int] = []
    with pytest.raises(QueueFullError) as caught:
        collected(url, kind, "map", samples(taken), concurrency=1)
    assert caught.value.__notes__ == ["in input 5, counted from 0"]
    assert len(taken) < len(DIGITS)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    "inputs", [pd.DataFrame({"a": [1]}), {"a": [1]}, "text"], ids=["table", "dict", "text"]
)
def test_one_input_in_place_of_many_is_said_to_be_one(url: str, kind: str, inputs: Any) -> None:
    with pytest.raises(TypeError, match="is one; expected a list of them"):
        collected(url, kind, "map", inputs)


async def test_inputs_may_come_over_time(url: str, double: ControllerDouble) -> None:
    async def coming() -> AsyncIterator[Any]:
        for each in samples():
            await asyncio.sleep(0)
            yield each

    async with AsyncClient(url) as client:
        assert [job.predictions[0].predicted async for job in client.map(coming())] == DIGITS


def test_no_more_calls_run_at_a_time_than_wanted_and_a_slow_one_holds_up_no_other() -> None:
    running, most, others = [0], [0], threading.Event()
    lock = threading.Lock()

    def call(place: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if place == 0:
            assert others.wait(30)  # until all others have come out
        with lock:
            running[0] -= 1
        return place

    results = run_all(call, range(10), 3, ordered=False, progress=False)
    assert sorted(next(results)[0] for _ in range(9)) == list(range(1, 10))
    others.set()
    assert [*results] == [(0, 0)]
    assert most[0] <= 3


async def test_an_iteration_that_is_left_cancels_its_calls() -> None:
    ended: list[int] = []

    async def call(place: int) -> int:
        try:
            await asyncio.sleep(0 if place == 0 else 600)
        finally:
            ended.append(place)
        return place

    results = run_all_async(call, range(100), 2, ordered=True, progress=False)
    assert await anext(results) == (0, 0)
    await results.aclose()
    assert set(ended) <= {0, 1, 2}
    assert len(asyncio.all_tasks()) == 1


def test_a_progress_bar_counts_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert len([*run_all(len, ["a", "bc"], 1, ordered=True, progress=True)]) == 2
    assert "2/2" in capsys.readouterr().err


def test_what_cannot_be_done_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="at least 1"):
        next(run_all(len, ["a"], 0, ordered=True, progress=False))
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ConfigurationError, match="pip install tqdm"):
        next(run_all(len, ["a"], 1, ordered=True, progress=True))
