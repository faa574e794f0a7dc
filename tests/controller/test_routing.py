"""Routing as tables: a pure function of the pool and the request."""

from __future__ import annotations

import pytest

from app.contract import TensorContract
from app.errors import (
    ContradictionError,
    InputShapeError,
    ModelyardError,
    NoCandidateError,
    ParameterError,
    UnknownModelError,
    UnknownWorkerError,
)
from app.redis import keys
from app.worker_record import WorkerRecord
from controller.routing import FORCED, POLICY, Selector, Snapshot, build_snapshot, foreseen, route
from tests.pool_samples import MODEL, record

OTHER = "Other"


def snapshot(
    *records: WorkerRecord, waits_ms: dict[int, float] | None = None, gone: tuple[int, ...] = ()
) -> Snapshot:
    numbers = {each.queue: each.worker for each in records}
    numbers |= {keys.queue_name(MODEL, version): version for version in gone}
    waits = {keys.queue_name(MODEL, version): wait for version, wait in (waits_ms or {}).items()}
    return build_snapshot(records, numbers, waits)


def fits(_: TensorContract) -> bool:
    return True


def order(pool: Snapshot) -> list[int]:
    return [candidate.worker for candidate in pool.candidates]


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (snapshot(record(1, val_accuracy=0.8), record(2, val_accuracy=0.9)), [2, 1]),
        (snapshot(record(1, val_accuracy=None), record(2, val_accuracy=0.0)), [2, 1]),
        (snapshot(record(1, val_accuracy=None)), [1]),
        (snapshot(record(1), record(2)), [2, 1]),
        (snapshot(record(1), record(2), waits_ms={2: 1}), [1, 2]),
        (snapshot(record(1), record(2), waits_ms={1: 50, 2: 20}), [2, 1]),
        (snapshot(record(1, state="starting"), record(2, state="draining"), record(3)), [3]),
        (snapshot(), []),
    ],
    ids=[
        "the higher val_accuracy first",
        "none ranks below zero",
        "none alone is a candidate",
        "a tie goes to the newer version",
        "a queue without a backlog has no wait",
        "a tie goes to the shorter wait",
        "only ready workers",
        "an empty pool",
    ],
)
def test_the_policy_orders_the_candidates(pool: Snapshot, expected: list[int]) -> None:
    assert order(pool) == expected


def test_replicas_of_a_queue_are_one_candidate() -> None:
    replicas = [record(1, worker_id=f"host-{i}") for i in range(4)]
    assert [candidate.live_workers for candidate in snapshot(*replicas).candidates] == [4]


def test_the_number_in_the_shared_table_wins_over_the_one_that_a_record_still_holds() -> None:
    stale = record(1, worker=7)
    assert order(build_snapshot([stale], {stale.queue: 9}, {})) == [9]


POOL = snapshot(
    record(1, val_accuracy=0.8, aliases={"champion": 2, "old": 1}, aliases_read_at_ms=1),
    record(2, val_accuracy=0.9, aliases={"champion": 1, "gone": 5, "next": 6}, aliases_read_at_ms=2),
    record(3, val_accuracy=None, model_name=OTHER),
    gone=(5,),
)


@pytest.mark.parametrize(
    ("selector", "worker", "policy"),
    [
        (Selector(), 2, POLICY),
        (Selector(worker=1), 1, FORCED),
        (Selector(worker=3), 3, FORCED),
        (Selector(worker=1, model=MODEL), 1, FORCED),
        (Selector(worker=1, version=1), 1, FORCED),
        (Selector(worker=1, model=MODEL, version=1), 1, FORCED),
        (Selector(model=MODEL), 2, POLICY),
        (Selector(model=OTHER), 3, POLICY),
        (Selector(model=MODEL, version=1), 1, FORCED),
        (Selector(model=MODEL, version="champion"), 1, FORCED),
        (Selector(model=f"{MODEL}@champion"), 1, FORCED),
        (Selector(model=f"{MODEL}@champion", version="champion"), 1, FORCED),
        (Selector(model=f"{MODEL}@champion", version=1), 1, FORCED),
        (Selector(worker=1, version="champion"), 1, FORCED),
    ],
)
def test_a_request_goes_where_it_says_or_to_the_best(selector: Selector, worker: int, policy: str) -> None:
    chosen = route(POOL, selector, fits)
    assert (chosen.candidate.worker, chosen.policy, chosen.forced) == (worker, policy, policy == FORCED)


@pytest.mark.parametrize(
    ("selector", "error", "text"),
    [
        (Selector(worker=4), UnknownWorkerError, "known numbers: 1, 2, 3, 5"),
        (Selector(worker=5), NoCandidateError, "no worker is ready"),
        (Selector(worker=1, version=2), ContradictionError, "worker 1 serves"),
        (Selector(worker=1, model=OTHER), ContradictionError, "worker 1 serves"),
        (Selector(worker=5, version=1), ContradictionError, "worker 5 serves"),
        (Selector(model="Nobody"), UnknownModelError, f"known models: {MODEL}, {OTHER}"),
        (Selector(model=""), UnknownModelError, "known models"),
        (Selector(model="", version=1), UnknownModelError, "known models"),
        (Selector(model=MODEL, version=9), UnknownModelError, "known versions: 1, 2, 5"),
        (Selector(model=MODEL, version=5), NoCandidateError, "no worker is ready"),
        (Selector(version=1), ParameterError, "version needs model"),
        (Selector(version="champion"), ParameterError, "version needs model"),
        (Selector(model=MODEL, version="gone"), NoCandidateError, "no worker is ready"),
        (Selector(model=MODEL, version="next"), UnknownModelError, "is version 6, which no worker serves"),
        (Selector(model=MODEL, version="old"), UnknownModelError, "known aliases: gone, champion, next"),
        (Selector(model=f"{MODEL}@chmp"), UnknownModelError, "known aliases: champion"),
        (Selector(model=OTHER, version="champion"), UnknownModelError, "known aliases: none"),
        (Selector(model="Othr@champion"), UnknownModelError, f"known models: {OTHER}, {MODEL}"),
        (Selector(model=f"{MODEL}@champion", version=2), ContradictionError, "names another"),
        (Selector(worker=2, version="champion"), ContradictionError, "worker 2 serves"),
        (Selector(worker=2, model=f"{MODEL}@champion"), ContradictionError, "worker 2 serves"),
    ],
)
def test_a_request_that_cannot_be_routed_says_why(
    selector: Selector, error: type[ModelyardError], text: str
) -> None:
    with pytest.raises(error, match=text) as raised:
        route(POOL, selector, fits)
    assert type(raised.value) is error


def test_a_version_alone_is_enough_where_one_model_is_served() -> None:
    pool = snapshot(record(1), record(2))
    assert route(pool, Selector(version=1), fits).candidate.worker == 1


@pytest.mark.parametrize(
    ("selector", "error", "text"),
    [
        (Selector(), NoCandidateError, "no worker is ready"),
        (Selector(worker=1), UnknownWorkerError, "known numbers: none yet"),
        (Selector(model=MODEL), UnknownModelError, "known models: none yet"),
        (Selector(version=1), ParameterError, "version needs model"),
    ],
)
def test_an_empty_pool_can_take_nothing(selector: Selector, error: type[ModelyardError], text: str) -> None:
    with pytest.raises(error, match=text):
        route(Snapshot(), selector, fits)


def test_no_candidate_says_when_to_try_again() -> None:
    with pytest.raises(NoCandidateError) as raised:
        route(Snapshot(), Selector(), fits)
    assert raised.value.retry_after_s


def test_the_best_candidate_that_fits_the_input_is_chosen() -> None:
    wide = TensorContract("float32", (3,))
    pool = snapshot(record(1, val_accuracy=0.5), record(2, val_accuracy=0.9, input=wide))
    chosen = route(pool, Selector(), lambda contract: contract != wide)
    assert (chosen.candidate.worker, chosen.policy) == (1, POLICY)


@pytest.mark.parametrize(
    ("selector", "worker"), [(Selector(), 2), (Selector(worker=1), 1), (Selector(model=OTHER), 3)]
)
def test_where_all_versions_take_the_same_input_the_choice_is_known_before_it(
    selector: Selector, worker: int
) -> None:
    certain = foreseen(POOL, selector)
    assert certain == route(POOL, selector, lambda _: True)
    assert certain.candidate.worker == worker


def test_where_the_input_decides_nothing_is_foreseen() -> None:
    pool = snapshot(record(1), record(2, input=TensorContract("float32", (3,))))
    assert foreseen(pool, Selector()) is None
    certain = foreseen(pool, Selector(worker=1))
    assert certain
    assert certain.candidate.worker == 1


def test_an_input_that_fits_no_candidate_is_told_what_each_takes() -> None:
    wide = TensorContract("int8", (3,))
    pool = snapshot(record(1), record(2, input=wide))
    with pytest.raises(InputShapeError, match=r"int8 .*\(n, 3\).* or float32 .*\(n, 2\)"):
        route(pool, Selector(), lambda _: False)


def test_a_forced_worker_that_does_not_fit_is_not_replaced_by_another() -> None:
    wide = TensorContract("float32", (3,))
    pool = snapshot(record(1), record(2, input=wide))
    with pytest.raises(InputShapeError):
        route(pool, Selector(worker=2), lambda contract: contract != wide)


def test_an_alias_of_a_model_without_live_workers_is_refused_for_a_time() -> None:
    with pytest.raises(NoCandidateError, match="is alive to tell the version"):
        route(snapshot(gone=(1,)), Selector(model=f"{MODEL}@champion"), fits)
