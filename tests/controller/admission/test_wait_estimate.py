"""The arithmetic of a full queue: what batches cost, how long a job would wait, who is refused and until when."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import nullcontext, suppress
from heapq import heappop, heappush
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ledger.wire import EXPIRED, BatchOutcome
from app.server_errors import QueueFullError
from app.settings import ControllerSettings
from controller.admission.full_queue import LONGEST_RETURN_S, FullQueue
from controller.admission.wait_estimate import LEAST_BATCH_MS, Backlogs, BatchCosts, QueueBacklog
from modelyard.schemas import Latency
from tests.pool_samples import SIGNER, outcome, record

QUEUE = record().queue
NOW_MS = 1_700_000_000_000.0

fixed_ms = st.floats(1, 500)
per_job_ms = st.floats(0, 50)
sizes = st.integers(1, 256)


def learnt(*batches: tuple[float, float]) -> BatchCosts:
    costs = BatchCosts()
    for jobs, took_ms in batches:
        costs.learn(jobs, took_ms)
    return costs


def backlog(*batches: tuple[float, float], **counts: Any) -> QueueBacklog:
    return QueueBacklog(costs=learnt(*batches), **counts)


def backlogs(**settings: Any) -> Backlogs:
    return Backlogs(ControllerSettings(redis_url="redis://localhost", **settings))


def came_back(started_at_ms: float, took_ms: float, n_jobs: int = 4, **fields: Any) -> BatchOutcome:
    return outcome(
        n_jobs, **{"started_at_ms": started_at_ms, "finished_at_ms": started_at_ms + took_ms, **fields}
    )


@given(fixed_ms, per_job_ms, st.lists(sizes, min_size=1, max_size=30), sizes)
def test_an_unseen_size_is_never_taken_to_cost_more_than_it_does(
    fixed: float, per_job: float, seen: list[int], jobs: int
) -> None:
    costs = learnt(*((size, fixed + per_job * size) for size in seen))
    assert costs.batch_ms(jobs) <= (fixed + per_job * jobs) * 1.001 + 0.001


@given(fixed_ms, per_job_ms, st.lists(sizes, min_size=2, max_size=30), st.data())
def test_between_two_sizes_that_were_seen_the_cost_is_right(
    fixed: float, per_job: float, seen: list[int], data: st.DataObject
) -> None:
    # One size a class: the mean of a class is not to move.
    seen = list({size.bit_length(): size for size in seen}.values())
    costs = learnt(*((size, fixed + per_job * size) for size in seen))
    jobs = data.draw(st.integers(min(seen), max(seen)))
    assert costs.batch_ms(jobs) == pytest.approx(fixed + per_job * jobs)


@given(st.lists(st.tuples(st.floats(1, 256), st.floats(0, 1e6)), max_size=40), st.floats(1, 1000))
def test_a_cost_is_a_positive_number_whatever_came_back(
    batches: list[tuple[float, float]], jobs: float
) -> None:
    assert LEAST_BATCH_MS <= learnt(*batches).batch_ms(jobs) <= 1e6


def test_what_was_learnt_of_large_batches_outlives_a_quiet_time_of_small_ones() -> None:
    costs = learnt((256, 280), *[(1, 21)] * 1000)
    assert costs.batch_ms(256) == pytest.approx(280)


def test_a_small_batch_never_costs_more_than_a_large_one() -> None:
    for batches in ([(1, 10_000), (64, 5)], [(64, 5), (1, 10_000)]):
        costs = learnt(*batches)
        assert costs.batch_ms(1) == pytest.approx(5), "its worker stood still"
        assert costs.batch_ms(64) == pytest.approx(5)


def test_a_model_that_became_slower_is_followed_and_one_stray_batch_is_not() -> None:
    costs = learnt(*[(10, 30)] * 10, (10, 30_000))
    assert costs.batch_ms(10) < 40
    for _ in range(30):
        costs.learn(10, 300)
    assert costs.batch_ms(10) == pytest.approx(300, rel=0.05)


@pytest.mark.parametrize(
    ("counts", "wait_ms"),
    [
        ({}, 0),
        ({"sent_jobs": 100, "sent_batches": 1}, 120),
        ({"sent_jobs": 101, "sent_batches": 2}, 141),
        ({"sent_jobs": 1, "sent_batches": 1, "unsent_jobs": 100}, 141),
        ({"unsent_jobs": 100}, 120),
        ({"sent_jobs": 100, "sent_batches": 1, "other_jobs": 300}, 480),
        ({"sent_jobs": 100, "sent_batches": 1, "other_jobs": 300, "workers": 4}, 120),
        ({"other_jobs": 1000}, 1200),
    ],
    ids=[
        "an empty queue",
        "one batch",
        "two batches of different sizes",
        "jobs that are held make one more batch",
        "held jobs alone",
        "other controllers' jobs travel like this one's",
        "replicas share the work",
        "none of its own: batches as they usually are",
    ],
)
def test_the_expected_wait_is_what_the_batches_ahead_take(counts: dict[str, int], wait_ms: float) -> None:
    costs = [(1.0, 21.0), (200.0, 220.0), *[(100.0, 120.0)] * 40]
    assert backlog(*costs, **counts).expected_wait_ms() == pytest.approx(wait_ms, rel=0.01)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 64))
def test_one_more_job_or_one_worker_less_never_shortens_the_wait(
    held: int, sent: int, other: int, workers: int
) -> None:
    costs = [(1.0, 21.0), (100.0, 120.0)]
    counts: dict[str, Any] = {"sent_jobs": sent, "sent_batches": -(-sent // 100), "workers": workers}
    wait_ms = backlog(*costs, unsent_jobs=held, other_jobs=other, **counts).expected_wait_ms()
    assert wait_ms >= 0
    more = backlog(*costs, unsent_jobs=held, other_jobs=other + 1, **counts).expected_wait_ms()
    fewer = backlog(*costs, unsent_jobs=held, other_jobs=other, **{**counts, "workers": workers + 1})
    assert fewer.expected_wait_ms() <= wait_ms <= more


@given(
    st.lists(st.tuples(sizes, st.floats(0, 1e5)), max_size=9),
    st.integers(0, 999),
    st.integers(0, 999),
    st.integers(0, 999),
    st.integers(1, 64),
    st.floats(0.001, 3600),
)
def test_whoever_is_let_in_at_first_sight_would_be_in_time(
    batches: list[tuple[int, float]], held: int, sent: int, other: int, workers: int, deadline_s: float
) -> None:
    pool = backlogs()
    lane = pool.of(QUEUE)
    for jobs, took_ms in batches:
        lane.costs.learn(jobs, took_ms)
    lane.unsent_jobs, lane.sent_jobs, lane.other_jobs, lane.workers = held, sent, other, workers
    lane.sent_batches = -(-sent // 64)
    longest_ms = deadline_s * 1000 * ControllerSettings(redis_url="redis://x").backlog_deadline_fraction
    try:
        pool.check_room(QUEUE, deadline_s)
    except QueueFullError:
        assert lane.expected_wait_ms() > longest_ms
    else:
        assert lane.expected_wait_ms() <= longest_ms * (1 + 1e-9)


def test_a_batch_costs_what_passed_since_its_worker_could_have_begun_it() -> None:
    queue = QueueBacklog()
    batch_id = SIGNER.new_batch_id(NOW_MS - 1000, 4)
    queue.learn(batch_id, came_back(NOW_MS, 30))
    assert queue.costs.batch_ms(4) == pytest.approx(40), "the first: as long a pause as there may be"
    fresh = QueueBacklog(free_at_ms={"host-1": NOW_MS - 3})
    fresh.learn(batch_id, came_back(NOW_MS, 30))
    assert fresh.costs.batch_ms(4) == pytest.approx(33), "3 ms passed between the two"
    idle = QueueBacklog(free_at_ms={"host-1": NOW_MS - 500})
    idle.learn(SIGNER.new_batch_id(NOW_MS - 2, 4), came_back(NOW_MS, 30))
    assert idle.costs.batch_ms(4) == pytest.approx(32), "before that there was nothing to do"


def test_batches_that_did_not_run_teach_nothing() -> None:
    queue = QueueBacklog()
    closed = came_back(NOW_MS, 0, n_samples=0, worker_id="", jobs=[EXPIRED] * 4)
    queue.learn(SIGNER.new_batch_id(NOW_MS, 4), closed)
    assert not queue.costs.known


def test_a_queue_is_full_for_a_deadline_that_is_too_close_and_open_for_a_later_one() -> None:
    full = backlogs(backlog_deadline_fraction=0.5)
    full.of(QUEUE).costs.learn(100, 100)
    full.of(QUEUE).sent_jobs, full.of(QUEUE).sent_batches = 5000, 50
    full.check_room(QUEUE, 10.0)
    with pytest.raises(QueueFullError, match=r"of 5\.0 s exceeds the 1\.5 s") as refused:
        full.check_room(QUEUE, 3.0)
    assert refused.value.retry_after_s == pytest.approx(3.5, rel=0.01)


@given(sizes, fixed_ms, per_job_ms, st.integers(0, 10_000), st.floats(0.001, 3600))
def test_after_retry_after_there_is_room_if_nobody_else_came(
    size: int, fixed: float, per_job: float, batches: int, deadline_s: float
) -> None:
    full = backlogs()
    queue = full.of(QUEUE)
    queue.costs.learn(size, fixed + per_job * size)
    queue.sent_batches, queue.sent_jobs = batches, batches * size
    try:
        full.check_room(QUEUE, deadline_s)
    except QueueFullError as refused:
        done = -(-(refused.retry_after_s or 0.0) * 1000 // queue.costs.batch_ms(size))
        queue.sent_batches = max(0, batches - int(done))
        queue.sent_jobs = queue.sent_batches * size
        full.check_room(QUEUE, deadline_s)


@given(st.floats(0.001, 3600), st.floats(1, 1e6))
def test_an_empty_queue_takes_every_job(deadline_s: float, took_ms: float) -> None:
    empty = backlogs()
    empty.of(QUEUE).costs.learn(1, took_ms)
    empty.check_room(QUEUE, deadline_s)
    backlogs().check_room("a queue that nobody has heard of", deadline_s)


def test_the_limit_in_jobs_holds_whatever_the_queue_gets_through() -> None:
    full = backlogs(backlog_limit=10)
    full.of(QUEUE).unsent_jobs = 9
    full.check_room(QUEUE, 60.0)
    full.of(QUEUE).unsent_jobs = 10
    with pytest.raises(QueueFullError, match="10 jobs wait") as refused:
        full.check_room(QUEUE, 60.0)
    assert refused.value.retry_after_s == 1.0


def full_queue(owners: Counter[str], **counts: Any) -> Backlogs:
    """A queue with 10 ms a job, in which a job may wait for 5 s of its 10: 500 jobs."""
    settings = ControllerSettings(redis_url="redis://localhost", backlog_deadline_fraction=0.5)
    full = Backlogs(settings, now_s=lambda: 1.0)
    queue = full.of(QUEUE)
    queue.open_by_caller.update({owner: n_jobs for owner, n_jobs in owners.items() if owner})
    queue.costs.learn(100, 1000)
    queue.sent_jobs = owners.total()
    queue.sent_batches, queue.other_jobs = queue.sent_jobs // 100, counts.get("other_jobs", 0)
    return full


@pytest.mark.parametrize(
    ("owners", "caller", "is_taken"),
    [
        (Counter(flood=600), "small", True),
        (Counter(flood=600), "flood", False),
        (Counter(flood=400, small=200), "small", True),
        (Counter(flood=300, small=300), "small", False),
        (Counter({"": 600}), "", False),
        (Counter(flood=800), "small", False),
    ],
    ids=[
        "a caller without jobs",
        "the caller who fills the queue",
        "a caller below half, of two",
        "a caller above half, of two",
        "callers without keys are one",
        "past the middle between a full queue and the deadline nobody is taken",
    ],
)
def test_a_full_queue_still_takes_a_caller_below_its_share(
    owners: Counter[str], caller: str, is_taken: bool
) -> None:
    full = full_queue(owners)
    with nullcontext() if is_taken else pytest.raises(QueueFullError):
        full.check_room(QUEUE, 10.0, caller)


def test_a_small_caller_has_a_place_beside_a_flood_that_came_through_other_controllers() -> None:
    full = full_queue(Counter(), other_jobs=600)
    n_taken = 0
    with suppress(QueueFullError):
        for _ in range(600):
            full.check_room(QUEUE, 10.0, "small")
            full.of(QUEUE).open_by_caller["small"] += 1
            n_taken += 1
    assert n_taken == 250, "half of what the queue holds when it is full"


def test_those_who_never_came_back_are_forgotten_once_there_has_been_room() -> None:
    now = [0.0]
    full = FullQueue({}, lambda: now[0])
    told_s = [full.return_after_s("", 1.0, 0.1) for _ in range(10_000)]
    assert told_s[0] == 1.0
    assert max(told_s) == LONGEST_RETURN_S
    now[0] = 1.0
    assert full.return_after_s("", 1.0, 0.1) > LONGEST_RETURN_S / 2
    assert full.return_after_s("another key", 1.0, 0.1) == 1.0
    now[0] = 30.0
    assert full.return_after_s("", 1.0, 0.1) == 1.0


def test_few_of_those_who_come_back_when_they_are_told_to_are_refused_again() -> None:
    """A worker that gets 100 jobs/s done, and for 20 s 300 new callers/s who obey."""
    now = [0.0]
    pool = Backlogs(ControllerSettings(redis_url="redis://localhost"), now_s=lambda: now[0])
    queue = pool.of(QUEUE)
    queue.costs.learn(1, 10)
    arrivals = [(n / 300, 0) for n in range(20 * 300)]
    returned, refused_again, done_at_s = 0, 0, 0.0
    while arrivals:
        now[0], n_refusals = heappop(arrivals)
        done = min(int((now[0] - done_at_s) * 100), queue.sent_jobs)
        done_at_s = done_at_s + done / 100 if done < queue.sent_jobs else now[0]
        queue.sent_jobs = queue.sent_batches = queue.sent_jobs - done
        returned += n_refusals == 1
        try:
            pool.check_room(QUEUE, 5.0)
        except QueueFullError as refused:
            refused_again += n_refusals == 1
            heappush(arrivals, (now[0] + math.ceil(refused.retry_after_s or 0.0), n_refusals + 1))
        else:
            queue.sent_jobs += 1
            queue.sent_batches += 1
    assert returned > 3000
    assert refused_again / returned < 0.2


def test_a_reading_of_the_pool_tells_the_other_controllers_jobs_and_never_counts_its_own_twice() -> None:
    pool = backlogs()
    queue = pool.of(QUEUE)
    queue.unsent_jobs = 30
    queue.send(30)
    pool.begin_reading()
    queue.sent_jobs = 20  # one came back while Redis was read
    pool.refresh([record()], {QUEUE: 30})
    assert queue.other_jobs == 0
    pool.begin_reading()
    pool.refresh([record()], {QUEUE: 50})
    assert (queue.other_jobs, queue.sent_jobs) == (30, 20)
    pool.begin_reading()
    pool.refresh([record()], {})
    assert (queue.other_jobs, queue.sent_jobs) == (0, 20)


def test_a_job_that_came_and_went_while_the_pool_was_read_counts_for_no_other_controller() -> None:
    pool = backlogs()
    queue = pool.of(QUEUE)
    pool.begin_reading()
    queue.unsent_jobs = 10
    queue.send(10)
    queue.sent_jobs = 0
    pool.refresh([record()], {QUEUE: 10})
    assert queue.other_jobs == 0


def test_a_controller_that_has_just_begun_goes_by_what_the_workers_say() -> None:
    pool = backlogs()
    said: dict[str, Any] = {"inference_ms": Latency(19, 19, 30), "jobs_done": 400, "batches_done": 40}
    replicas = [record(worker_id=f"host-{i}", **said) for i in range(2)]
    waits_ms = pool.refresh(replicas, {QUEUE: 100})
    assert waits_ms[QUEUE] == pytest.approx(100, rel=0.01), "10 batches of 20 ms for two workers"


def test_workers_that_come_and_go_shorten_and_lengthen_the_wait() -> None:
    pool = backlogs()
    pool.of(QUEUE).costs.learn(10, 100)
    replicas = [record(worker_id=f"host-{i}") for i in range(3)]
    waits_ms = [
        pool.refresh(ready, {QUEUE: 60}).get(QUEUE) for ready in (replicas[:1], replicas, replicas[:2], [])
    ]
    assert waits_ms == [600, 200, 300, None]
    assert pool.of(QUEUE).expected_wait_ms() == 600, "with nobody ready it is as if one were"
