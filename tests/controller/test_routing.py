"""Routing as tables: a pure function of the pool and the request."""

from __future__ import annotations

from typing import Any

import pytest

from app import pool_file
from app.contract import TensorContract
from app.pool_file import NamedVersion, Policy
from app.quality import packed_rows
from app.redis import keys
from app.server_errors import (
    ContradictionError,
    EndpointRequiredError,
    ModelyardError,
    NoCandidateError,
    ParameterError,
    UnknownEndpointError,
    UnknownModelError,
    UnknownWorkerError,
)
from app.worker_record import WorkerRecord
from controller.endpoints import BEST_METRIC, HIGHEST_VAL_ACCURACY, Exclusion, Route
from controller.pool_snapshot import Snapshot, build_snapshot
from controller.routing import FORCED, routes
from controller.selector import Selector
from tests.pool_samples import MODEL, record

OTHER = "Other"


def snapshot(
    *records: WorkerRecord, waits_ms: dict[int, float] | None = None, gone: tuple[int, ...] = ()
) -> Snapshot:
    numbers = {each.queue: each.worker for each in records}
    numbers |= {keys.queue_name(MODEL, version): version for version in gone}
    waits = {keys.queue_name(MODEL, version): wait for version, wait in (waits_ms or {}).items()}
    return build_snapshot(records, numbers, waits)


def route(pool: Snapshot, selector: Selector, deadline_s: float = 30) -> Route:
    return routes(pool, selector, deadline_s)[0]


def order(pool: Snapshot) -> list[int]:
    return [candidate.worker for candidate in pool.ready_versions]


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
    assert [candidate.live_workers for candidate in snapshot(*replicas).ready_versions] == [4]


def test_the_number_in_the_shared_table_wins_over_the_one_that_a_record_still_holds() -> None:
    stale = record(1, worker=7)
    assert order(build_snapshot([stale], {stale.queue: 9}, {})) == [9]


POOL = snapshot(
    record(1, val_accuracy=0.8, aliases={"champion": 2, "old": 1}, aliases_read_at_ms=1),
    record(2, val_accuracy=0.9, aliases={"champion": 1, "gone": 5, "next": 6}, aliases_read_at_ms=2),
    record(3, val_accuracy=None, model_name=OTHER),
    gone=(5,),
)


def test_a_followed_alias_names_its_followers_version_until_the_new_one_is_ready() -> None:
    old = record(1, follows="champion", aliases={"champion": 2}, aliases_read_at_ms=1)
    asked = Selector(model=f"{MODEL}@champion")
    assert route(snapshot(old), asked).candidate.model_version == 1
    assert route(snapshot(old, record(2, state="starting")), asked).candidate.model_version == 1
    assert route(snapshot(old, record(2)), asked).candidate.model_version == 2


@pytest.mark.parametrize(
    ("selector", "worker", "policy"),
    [
        (Selector(endpoint=MODEL), 2, HIGHEST_VAL_ACCURACY),
        (Selector(endpoint=OTHER), 3, HIGHEST_VAL_ACCURACY),
        (Selector(worker=1), 1, FORCED),
        (Selector(worker=3), 3, FORCED),
        (Selector(worker=1, model=MODEL), 1, FORCED),
        (Selector(worker=1, version=1), 1, FORCED),
        (Selector(worker=1, model=MODEL, version=1), 1, FORCED),
        (Selector(model=MODEL), 2, HIGHEST_VAL_ACCURACY),
        (Selector(model=OTHER), 3, HIGHEST_VAL_ACCURACY),
        (Selector(model=MODEL, version=1), 1, FORCED),
        (Selector(model=MODEL, version="champion"), 1, FORCED),
        (Selector(model=f"{MODEL}@champion"), 1, FORCED),
        (Selector(model=f"{MODEL}@champion", version="champion"), 1, FORCED),
        (Selector(model=f"{MODEL}@champion", version=1), 1, FORCED),
        (Selector(worker=1, version="champion"), 1, FORCED),
    ],
)
def test_a_request_goes_where_it_says_or_to_the_best(selector: Selector, worker: int, policy: str) -> None:
    chosen = route(POOL, selector)
    assert (chosen.candidate.worker, chosen.policy, chosen.forced) == (worker, policy, policy == FORCED)


@pytest.mark.parametrize(
    ("selector", "error", "text"),
    [
        (Selector(), EndpointRequiredError, f"--endpoint NAME to a command, with one of: {MODEL}, {OTHER}"),
        (Selector(endpoint="Othr"), UnknownEndpointError, f"known endpoints: {OTHER}, {MODEL}"),
        (Selector(endpoint=OTHER, model=MODEL), ContradictionError, "leave one of them out"),
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
        route(POOL, selector)
    assert type(raised.value) is error


def test_a_version_alone_is_enough_where_one_model_is_served() -> None:
    pool = snapshot(record(1), record(2))
    assert route(pool, Selector(version=1)).candidate.worker == 1


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
        route(Snapshot(), selector)


def test_no_candidate_says_when_to_try_again() -> None:
    with pytest.raises(NoCandidateError) as raised:
        route(Snapshot(), Selector())
    assert raised.value.retry_after_s


def test_each_contract_of_an_endpoint_has_a_route_to_its_best_version() -> None:
    wide = TensorContract("float32", (3,))
    pool = snapshot(
        record(1, val_accuracy=0.5),
        record(2, val_accuracy=0.9, input=wide),
        record(3, val_accuracy=0.4),
    )
    assert [each.candidate.worker for each in routes(pool, Selector())] == [2, 1]
    assert [each.candidate.worker for each in routes(pool, Selector(worker=3))] == [3]


def test_an_alias_of_a_model_without_live_workers_is_refused_for_a_time() -> None:
    with pytest.raises(NoCandidateError, match="is alive to tell the version"):
        route(snapshot(gone=(1,)), Selector(model=f"{MODEL}@champion"))


def test_a_model_whose_workers_restart_stays_an_endpoint() -> None:
    alone = record(1)
    restarting = build_snapshot([alone], {alone.queue: 1}, {}, recent_models=[MODEL, OTHER])
    with pytest.raises(EndpointRequiredError):
        route(restarting, Selector())
    starting = snapshot(alone, record(2, model_name=OTHER, state="starting"))
    with pytest.raises(EndpointRequiredError):
        route(starting, Selector())
    with pytest.raises(NoCandidateError):
        route(starting, Selector(endpoint=OTHER))


def test_an_excluded_version_is_no_candidate_but_can_be_named() -> None:
    best, other = record(2, val_accuracy=0.9), record(1, val_accuracy=0.8)
    excluded = {best.queue: Exclusion("disabled", "disabled by an operator")}
    pool = build_snapshot([best, other], {best.queue: 2, other.queue: 1}, {}, excluded=excluded)
    assert route(pool, Selector()).candidate.worker == 1
    assert route(pool, Selector(worker=2)).candidate.worker == 2
    assert pool.endpoints[MODEL].excluded == excluded


def measured(
    version: int, val_accuracy: float | None, digest: str = "d", rows: int = 0, **fields: Any
) -> WorkerRecord:
    return record(version, val_accuracy=val_accuracy, dataset_digest=digest, dataset_rows=rows, **fields)


CHAMPION_1: dict[str, Any] = {"aliases": {"champion": 1}, "aliases_read_at_ms": 1}


@pytest.mark.parametrize(
    ("records", "waits_ms", "expected"),
    [
        ([measured(1, 0.95, **CHAMPION_1), measured(2, 0.97)], {}, [2, 1]),
        ([measured(1, 0.95, rows=360, **CHAMPION_1), measured(2, 0.97, rows=360)], {}, [1, 2]),
        ([measured(1, 0.95, rows=360), measured(2, 0.97, rows=360)], {2: 5.0}, [1, 2]),
        ([measured(1, 0.97, rows=360), measured(2, 0.95, rows=360)], {}, [1, 2]),
        ([measured(1, 0.97, rows=360), measured(2, 0.97, rows=360)], {}, [2, 1]),
        ([measured(1, 0.95, rows=60_000, **CHAMPION_1), measured(2, 0.97, rows=60_000)], {}, [2, 1]),
        ([measured(1, 0.969, rows=10**9, **CHAMPION_1), measured(2, 0.97, rows=10**9)], {}, [1, 2]),
        ([measured(1, 0.95, "", 360, **CHAMPION_1), measured(2, 0.97, "", 360)], {}, [2, 1]),
        ([measured(1, 0.90, "a", 360, **CHAMPION_1), measured(2, 0.97, "b", 360)], {}, [1, 2]),
        ([measured(1, 0.90, "a", 360), measured(2, 0.97, "b", 360)], {}, [2, 1]),
    ],
    ids=[
        "without a number of rows only equal figures are a tie",
        "within the noise of 360 rows the champion comes first",
        "in a tie the shorter wait comes before the higher value",
        "in a tie without a wait the higher value comes first",
        "equal in all else, the newer version comes first",
        "beyond the noise of 60,000 rows the higher value comes first",
        "a difference below 0.002 is always a tie",
        "undeclared data sets are compared by their values alone",
        "of different data sets the champion comes first",
        "of different data sets without a champion the higher value comes first",
    ],
)
def test_figures_within_their_noise_are_a_tie(
    records: list[WorkerRecord], waits_ms: dict[int, float], expected: list[int]
) -> None:
    assert order(snapshot(*records, waits_ms=waits_ms)) == expected


@pytest.mark.parametrize(
    ("rows", "expected", "p"),
    [
        ("1" * 97 + "0" * 3, [2, 1], 0.015625),
        ("0" * 3 + "1" * 97, [1, 2], 0.092285),
        ("1" * 97 + "0" * 4, [1, 2], None),
    ],
    ids=[
        "of 7 rows all were better: no chance, and no tie",
        "of 13 rows 10 were better: perhaps chance, so that the champion comes first",
        "of another number of rows only the interval counts",
    ],
)
def test_rows_that_versions_got_right_tell_whether_their_figures_are_a_tie(
    rows: str, expected: list[int], p: float | None
) -> None:
    champion = measured(1, 0.9, rows=100, val_correct=packed_rows("1" * 90 + "0" * 10), **CHAMPION_1)
    pool = snapshot(champion, measured(2, 0.97, rows=100, val_correct=packed_rows(rows)))
    assert order(pool) == expected
    explained = pool.explain(route(pool, Selector()))
    assert explained.tie_p == (p if p is None else pytest.approx(p, abs=1e-6))
    assert (explained.tie_band is None) == (p is not None)


@pytest.mark.parametrize(
    ("policy", "expected", "named", "decided_by"),
    [
        ("best", [2, 1, 3], HIGHEST_VAL_ACCURACY, "val_accuracy"),
        ("champion", [1, 2, 3], "champion", "champion"),
        ("newest", [3, 2, 1], "newest_version", "newer_version"),
    ],
)
def test_the_policy_of_an_endpoint_orders_its_versions(
    policy: Policy, expected: list[int], named: str, decided_by: str
) -> None:
    records = [measured(1, 0.8, **CHAMPION_1), measured(2, 0.9), measured(3, 0.7)]
    endpoint = pool_file.Endpoint(models=(MODEL,), policy=policy)
    numbers = {each.queue: each.worker for each in records}
    pool = build_snapshot(records, numbers, {}, configured={"digits": endpoint})
    assert [each.worker for each in pool.endpoints["digits"].candidates] == expected
    chosen = route(pool, Selector())
    assert (chosen.policy, pool.explain(chosen).decided_by) == (named, decided_by)
    assert chosen.comparable is (True if policy == "best" else None)


@pytest.mark.parametrize(
    ("endpoints", "worker", "endpoint"),
    [
        ({"front": {"models": (MODEL,)}}, 3, "front"),
        ({MODEL: {"models": (MODEL, OTHER)}}, 3, MODEL),
        ({MODEL: {"versions": (NamedVersion(MODEL, 1),)}}, 1, MODEL),
        ({"front": {"models": (MODEL, OTHER)}}, 3, "front"),
        ({"front": {"models": (MODEL, OTHER)}, "back": {"models": (MODEL,)}}, 3, "back"),
        ({"front": {"models": (MODEL, OTHER)}, "back": {"models": (MODEL, OTHER)}}, 2, MODEL),
        ({"front": {"versions": (NamedVersion(MODEL, 1),)}}, 2, MODEL),
        ({MODEL: {"models": (OTHER,)}}, 2, MODEL),
        ({"front": {"models": (MODEL,)}, "back": {"models": (MODEL,)}}, 2, MODEL),
    ],
    ids=[
        "one that holds the model alone",
        "one of its name, but only the model's own versions",
        "one of its name with some of the versions",
        "the only one, which holds other models too",
        "of two, the one that holds no other model",
        "none of two that hold other models too",
        "none of some versions",
        "none that only has its name",
        "none of two that hold it",
    ],
)
def test_a_request_for_a_model_follows_the_policy_of_its_endpoint(
    endpoints: dict[str, dict[str, Any]], worker: int, endpoint: str
) -> None:
    records = [measured(1, 0.8), measured(2, 0.9), measured(3, 0.7), measured(4, 0.99, model_name=OTHER)]
    configured = {name: pool_file.Endpoint(policy="newest", **each) for name, each in endpoints.items()}
    pool = build_snapshot(records, {each.queue: each.worker for each in records}, {}, configured=configured)
    chosen = route(pool, Selector(model=MODEL))
    assert (chosen.candidate.worker, pool.explain(chosen).endpoint) == (worker, endpoint)
    assert route(pool, Selector(model=MODEL, version=2)).candidate.worker == 2


def cold_pool(*ready: WorkerRecord, last: list[WorkerRecord], **endpoint: Any) -> Snapshot:
    configured = {"front": pool_file.Endpoint(**{"models": (MODEL,), "cold": "accept", **endpoint})}
    numbers = {each.queue: each.worker for each in [*ready, *last]}
    return build_snapshot(ready, numbers, {}, configured=configured, last_records=[*ready, *last])


GONE = record(1).heartbeat_at_ms - 3_600_000
WIDE = TensorContract("float32", (3,))


@pytest.mark.parametrize(
    ("pool", "workers"),
    [
        (cold_pool(last=[measured(1, 0.8), measured(2, 0.9)]), [2]),
        (cold_pool(last=[measured(1, 0.8), measured(2, 0.9)], policy="champion", default_version=1), [1]),
        (cold_pool(measured(1, 0.8), last=[measured(2, 0.9)]), [1]),
        (cold_pool(measured(1, 0.8), last=[measured(2, 0.9, input=WIDE)]), [1, 2]),
        (cold_pool(last=[measured(1, 0.8), measured(2, 0.9, heartbeat_at_ms=GONE)]), [1]),
        (
            cold_pool(
                last=[measured(1, 0.8), measured(2, 0.9, heartbeat_at_ms=GONE)],
                versions=(NamedVersion(MODEL, 2),),
            ),
            [2],
        ),
    ],
    ids=[
        "the best of several",
        "by the policy of the endpoint",
        "a ready version comes before a better one that is cold",
        "a cold version where no ready one takes the input",
        "a version that another one has replaced is not waited for",
        "unless the endpoint lists it",
    ],
)
def test_requests_queue_for_a_cold_version_where_the_endpoint_accepts_them(
    pool: Snapshot, workers: list[int]
) -> None:
    found = routes(pool, Selector())
    assert [each.candidate.worker for each in found] == workers
    assert [pool.explain(each).cold for each in found] == [each.candidate.is_cold for each in found]
    assert routes(pool, Selector(endpoint="front")) == found
    assert [each.candidate.worker for each in routes(pool, Selector(model=MODEL))] == workers


def test_a_cold_version_can_be_named_where_its_endpoint_accepts_requests_for_it() -> None:
    last = [measured(1, 0.8, **CHAMPION_1), measured(2, 0.9)]
    pool = cold_pool(last=last)
    assert route(pool, Selector(worker=1)).candidate.worker == 1
    assert route(pool, Selector(model=f"{MODEL}@champion")).candidate.worker == 1
    for selector in (Selector(), Selector(worker=1), Selector(model=MODEL, version=2)):
        with pytest.raises(NoCandidateError):
            route(
                cold_pool(last=[], cold="refuse") if selector == Selector() else snapshot(gone=(1, 2)),
                selector,
            )


def by_rmse(version: int, value: float | None, **fields: Any) -> WorkerRecord:
    own: dict[str, Any] = {"metric": "rmse", "direction": "lower", "metric_value": value}
    return measured(version, None, **{**own, **fields})


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([by_rmse(1, 4.0), by_rmse(2, 5.0)], [1, 2]),
        ([by_rmse(1, 4.0, direction="higher"), by_rmse(2, 5.0, direction="higher")], [2, 1]),
        ([by_rmse(1, 0.4001, rows=360, **CHAMPION_1), by_rmse(2, 0.4, rows=360)], [2, 1]),
        ([by_rmse(1, 0.4, **CHAMPION_1), by_rmse(2, 0.4)], [1, 2]),
        ([by_rmse(1, None), by_rmse(2, -3.0)], [2, 1]),
        ([measured(1, 0.99, rows=360), measured(2, 0.9, rows=360), by_rmse(3, 12.0)], [3, 1, 2]),
        ([measured(1, 0.99, **CHAMPION_1), measured(2, 0.9), by_rmse(3, 12.0)], [1, 2, 3]),
        ([by_rmse(1, 4.0), by_rmse(2, 5.0), by_rmse(3, 6.0, direction="higher")], [3, 1, 2]),
    ],
    ids=[
        "the lower value first",
        "the higher value first",
        "near values of 360 rows are no tie",
        "equal values are a tie",
        "a version without a value is the last",
        "of two metrics that of the newest version comes first",
        "of two metrics that of the champion comes first",
        "of two directions that of the newest version comes first",
    ],
)
def test_versions_are_ranked_by_their_own_metric(records: list[WorkerRecord], expected: list[int]) -> None:
    assert order(snapshot(*records)) == expected


@pytest.mark.parametrize(
    ("records", "decided_by", "why"),
    [
        ([by_rmse(1, 4.0), by_rmse(2, 5.0)], "metric", "it has the lowest rmse"),
        ([by_rmse(2, 4.0), measured(1, 0.9)], "newer_version", "; the figures are of different metrics"),
    ],
)
def test_the_explanation_names_the_metric(records: list[WorkerRecord], decided_by: str, why: str) -> None:
    pool = snapshot(*records)
    explained = pool.explain(route(pool, Selector()))
    assert (explained.policy, explained.metric, explained.direction) == (BEST_METRIC, "rmse", "lower")
    assert explained.decided_by == decided_by
    assert why in explained.why


@pytest.mark.parametrize(
    ("records", "comparable"),
    [
        ([by_rmse(1, 4.0), by_rmse(2, 5.0)], True),
        ([by_rmse(1, 4.0), measured(2, 0.8)], False),
        ([measured(1, 0.9)], None),
        ([measured(1, 0.9), measured(2, 0.8)], True),
        ([measured(1, 0.9), measured(2, 0.8, "other")], False),
        ([measured(1, 0.9, ""), measured(2, 0.8, "")], False),
        ([measured(1, 0.9), record(2, val_accuracy=None)], None),
        ([measured(1, 0.9), measured(2, 0.8, "", input=TensorContract("float32", (3,)))], None),
    ],
)
def test_a_route_says_whether_the_figures_can_be_compared(
    records: list[WorkerRecord], comparable: bool | None
) -> None:
    assert route(snapshot(*records), Selector()).comparable is comparable


def readings(*waits_ms: dict[int, float]) -> Snapshot:
    """A pool of two versions, version 2 the better one, after these readings of their waits."""
    records = [record(1, val_accuracy=0.8), record(2, val_accuracy=0.9)]
    numbers = {each.queue: each.worker for each in records}
    pool = Snapshot()
    for each in waits_ms:
        waits = {keys.queue_name(MODEL, version): wait for version, wait in each.items()}
        pool = build_snapshot(records, numbers, waits, before=pool)
    return pool


@pytest.mark.parametrize(
    ("waits_ms", "deadline_s", "worker"),
    [
        ([{2: 700}], 1, 2),
        ([{2: 1_100}], 1, 1),
        ([{2: 900}], 1, 2),
        ([{2: 900}, {2: 900}], 1, 2),
        ([{2: 900}, {2: 900}, {2: 900}], 1, 1),
        ([{2: 900}, {2: 700}, {2: 900}], 1, 2),
        ([{2: 1_100}], 10, 2),
        ([{1: 5_000, 2: 3_000}], 1, 2),
        ([{1: 3_000, 2: 5_000}], 1, 1),
    ],
    ids=[
        "in time",
        "far too late",
        "a little too late once",
        "twice",
        "at three readings",
        "not at each",
        "in time for a longer deadline",
        "none in time, the best is the first",
        "none in time, the other is the first",
    ],
)
def test_the_best_version_is_left_only_if_it_would_surely_be_late(
    waits_ms: list[dict[int, float]], deadline_s: float, worker: int
) -> None:
    chosen = route(readings(*waits_ms), Selector(), deadline_s)
    assert (chosen.candidate.worker, chosen.degraded) == (worker, worker == 1)
