"""The simulated pool against what queueing theory and arithmetic say of it."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import stdev

import pytest

from benchmarks.simulation import calibrate, check, costs, page, study
from benchmarks.simulation.costs import Cost, Costs
from benchmarks.simulation.pool_model import SHARES, Job, Plan, Pool
from benchmarks.simulation.real import Point
from benchmarks.simulation.simulate import Run
from benchmarks.simulation.simulated_time import Action, Clock, Host, Link, Process

COSTS = Costs(
    controller=Cost(300.0, 100.0),
    worker=Cost(500.0, 40.0),
    redis=Cost(150.0, 10.0),
    to_redis=Cost(3000.0, 3200.0),
    from_redis=Cost(1500.0, 3200.0),
    client_us=25.0,
    wake_us=20.0,
)
SERVICE_S = 1e-3
SIZES = (1.0, 5.0, 30.0, 100.0)  # mean jobs of a batch, of what calibrates
RHO = 0.7


def poisson(clock: Clock, n_arrivals: int, serve: partial[None], taken_s: list[float]) -> None:
    """Let work arrive at random, `RHO` of what one core can do, and note how long each piece takes."""
    dice, at_s = random.Random(0), 0.0

    def arrive() -> None:
        begun_s = clock.now_s
        serve(lambda: taken_s.append(clock.now_s - begun_s))

    for _ in range(n_arrivals):
        at_s += dice.expovariate(RHO / SERVICE_S)
        clock.after(at_s, arrive)
    clock.run(at_s + 1)


def mean_sojourn_s(serve_on: str) -> float:
    clock, taken_s = Clock(), list[float]()
    host = Host(clock, 1)
    serve = Process(clock, host).do if serve_on == "process" else host.run
    poisson(clock, 40_000, partial(serve, SERVICE_S), taken_s)
    assert len(taken_s) == 40_000
    return sum(taken_s) / len(taken_s)


def test_a_process_waits_as_long_as_pollaczek_and_khinchine_say() -> None:
    assert mean_sojourn_s("process") == pytest.approx(SERVICE_S * (1 + RHO / (2 * (1 - RHO))), rel=0.05)


def test_a_shared_core_takes_as_long_as_processor_sharing_does() -> None:
    assert mean_sojourn_s("host") == pytest.approx(SERVICE_S / (1 - RHO), rel=0.05)


@pytest.mark.parametrize(
    ("cores", "n_processes", "expected_s"), [(2, 1, 1.0), (2, 2, 1.0), (2, 3, 1.5), (1, 4, 4.0)]
)
def test_cores_are_shared_equally_and_no_process_has_more_than_one(
    cores: int, n_processes: int, expected_s: float
) -> None:
    clock, ended_s = Clock(), list[float]()
    host = Host(clock, cores)
    for _ in range(n_processes):
        Process(clock, host).do(1.0, lambda: ended_s.append(clock.now_s))
    clock.run(10.0)
    assert ended_s == pytest.approx([expected_s] * n_processes)


def test_a_short_piece_of_work_leaves_its_core_to_the_long_one() -> None:
    clock, ended_s = Clock(), dict[str, float]()
    host = Host(clock, 1)

    def end(name: str) -> Action:
        return lambda: ended_s.update({name: clock.now_s})

    host.run(3.0, end("long"))
    clock.after(1.0, lambda: host.run(1.0, end("short")))
    clock.run(10.0)
    assert ended_s == pytest.approx({"short": 3.0, "long": 4.0})


def test_bytes_leave_one_after_the_other_and_travel_together() -> None:
    clock, arrived_s = Clock(), list[float]()
    link = Link(clock, bytes_per_s=100.0, latency_s=5.0)
    for _ in range(2):
        link.send(200.0, lambda: arrived_s.append(clock.now_s))
    clock.run(20.0)
    assert arrived_s == [7.0, 9.0]
    assert link.used_s == 4.0


def test_the_shares_of_the_steps_add_up_to_the_whole_cost() -> None:
    for steps in (
        ("receive", "send", "hear", "complete", "reply", "write"),
        ("take", "infer", "end"),
        ("accept", "ask", "claim", "finish"),
    ):
        assert sum(SHARES[step][0] for step in steps) == pytest.approx(1)
        assert sum(SHARES[step][1] for step in steps) == pytest.approx(1)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(cores=2),
        Plan(n_controllers=3, n_workers=5, ahead=2),
        Plan(n_controllers=2, n_workers=8, n_versions=4),
        Plan(n_controllers=2, n_workers=2, max_jobs=4),
    ],
)
def test_every_job_is_answered_once_or_still_open(plan: Plan) -> None:
    clock = Clock()
    pool = Pool(clock, COSTS, plan)
    dice, answers = random.Random(0), dict.fromkeys(range(1500), 0)

    def answered(number: int) -> None:
        answers[number] += 1

    for number in answers:
        job = Job(dice.randrange(plan.n_versions), partial(answered, number))
        controller = pool.controllers[number % plan.n_controllers]
        clock.after(number / 3000, partial(controller.receive, job))
    clock.run(0.4)
    assert 0 < sum(answers.values()) <= len(answers) - sum(pool.open_jobs)
    clock.run(30.0)
    assert set(answers.values()) == {1}
    assert sum(pool.open_jobs) == 0


def test_a_single_caller_waits_for_the_sum_of_the_steps_in_its_way() -> None:
    run = Run(COSTS, Plan(latency_s=0.0, link_bytes_per_s=float("inf"), variation=0.0))
    run.close_loop(1)
    seen = run.watch(0.1, 0.5)
    busy_us = sum(cost.of(1) for cost in (COSTS.controller, COSTS.worker, COSTS.redis))
    # Not in the way: what a worker does once the outcome is written.
    afterwards_us = SHARES["end"][0] * COSTS.worker.batch + SHARES["ask"][0] * COSTS.redis.batch
    wake_ups_us = 7 * COSTS.wake_us  # the request, accept, message, claim, its answer, finish, notice
    assert seen.percentile_ms(50) * 1000 == pytest.approx(busy_us - afterwards_us + wake_ups_us, abs=1)


def test_a_pool_answers_as_much_as_its_busiest_process_can() -> None:
    """One controller, workers enough: batches are large, so the controller's cost is nearly its cost per job."""
    seen = study.saturated(COSTS, Plan(n_workers=2), 0.3, 2.0)
    most_per_s = 1e6 * seen.batch_jobs / COSTS.controller.of(seen.batch_jobs)
    assert 0.8 * most_per_s < seen.per_s <= 1.01 * most_per_s


def test_callers_and_latency_and_throughput_obey_littles_law() -> None:
    run = Run(COSTS, Plan(cores=2))
    run.close_loop(64)
    seen = run.watch(0.5, 1.0)
    mean_s = sum(latency_s for _, latency_s in seen.latency_s) / len(seen.latency_s)
    assert seen.per_s * mean_s == pytest.approx(64, rel=0.02)


def test_what_shares_two_cores_never_uses_more_than_two() -> None:
    run = Run(COSTS, Plan(cores=2, n_workers=2))
    run.close_loop(256)
    seen = run.watch(0.5, 1.0)
    per_job_us = sum(
        cost.of(seen.batch_jobs) / seen.batch_jobs for cost in (COSTS.controller, COSTS.worker, COSTS.redis)
    )
    assert seen.per_s * (per_job_us + COSTS.client_us) / 1e6 <= 2.02


def test_replicas_of_a_slow_model_share_its_work() -> None:
    def per_s(n_workers: int) -> float:
        run = Run(study.slow(COSTS), Plan(n_workers=n_workers))
        run.close_loop(128)
        return run.watch(0.5, 2.0).per_s

    alone = per_s(1)
    assert per_s(2) > 1.8 * alone
    assert per_s(4) > 3.4 * alone


def test_steps_vary_around_their_cost_as_much_as_is_said() -> None:
    pool = Pool(Clock(), COSTS, Plan(variation=0.5))
    process, n_steps = pool.process(), 20_000
    for _ in range(n_steps):
        process.do(SERVICE_S, lambda: None)
    pool.clock.run(2 * n_steps * SERVICE_S)
    assert process.used_s == pytest.approx(n_steps * SERVICE_S, rel=0.02)
    taken_s = [pool.vary(SERVICE_S) for _ in range(n_steps)]
    assert stdev(taken_s) == pytest.approx(0.5 * SERVICE_S, rel=0.05)


def test_a_simulation_repeats_itself_exactly() -> None:
    plan = Plan(n_controllers=2, n_workers=3, variation=0.3)
    assert study.place(COSTS, plan, 0.1, 0.1) == study.place(COSTS, plan, 0.1, 0.1)


def test_a_burst_raises_the_latency_and_is_worked_off() -> None:
    seen = study.burst(COSTS, Plan(), 1000.0)
    assert seen.calm_p99_ms < 10 < seen.worst_ms
    assert 0 < seen.over_s < study.BURST_END_S - study.BURST_AT_S - study.BURST_S


def point(jobs_per_batch: float, turn: int = 0, slower: float = 1.0) -> Point:
    def per_job(cost: Cost) -> float:
        return cost.of(jobs_per_batch) / jobs_per_batch * slower

    cpu_us = {name: per_job(getattr(COSTS, name)) for name in ("controller", "worker", "redis")}
    return Point(
        turn=turn,
        workers=1,
        connections=int(2 * jobs_per_batch),
        per_s=5000.0,
        p50_ms=5.0,
        p99_ms=9.0,
        errors=0,
        jobs_per_batch=jobs_per_batch,
        cpu_us={**cpu_us, "generator": 25.0 * slower},
        to_redis_bytes=per_job(COSTS.to_redis),
        from_redis_bytes=per_job(COSTS.from_redis),
        steal=0.0,
        foreign=0.01,
        stolen=0.0,
    )


def test_the_calibration_finds_the_costs_that_made_its_points() -> None:
    found = calibrate.fit([point(size) for size in SIZES], wake_us=20.0)
    for name in ("controller", "worker", "redis", "to_redis", "from_redis"):
        cost, known = getattr(found, name), getattr(COSTS, name)
        assert (cost.batch, cost.job) == pytest.approx((known.batch, known.job))
    assert (found.client_us, found.wake_us) == (25.0, 20.0)


def test_costs_are_read_as_they_were_written(tmp_path: Path) -> None:
    costs.write(tmp_path / "results" / "costs.json", COSTS, {"machine": "a small one"})
    assert costs.read(tmp_path / "results" / "costs.json") == (COSTS, {"machine": "a small one"})


def test_a_message_to_a_sleeping_process_takes_some_time() -> None:
    assert calibrate.wake_up_us() > 0


def measured(turn: int, per_s: float, p50_ms: float, stolen: float = 0.0) -> Point:
    return replace(point(4.0), turn=turn, per_s=per_s, p50_ms=p50_ms, stolen=stolen)


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulates less of each round."""
    monkeypatch.setattr(check, "WARM_S", 0.1)
    monkeypatch.setattr(check, "RUN_S", 0.4)


@pytest.mark.usefixtures("short_rounds")
def test_an_error_is_the_median_of_those_of_the_rounds() -> None:
    calibrating = [point(size, turn) for turn in range(3) for size in SIZES]
    predicted = check.predict(calibrate.fit(calibrating, 20.0), 1, 8, 2)
    per_s, p50_ms = predicted.per_s, predicted.percentile_ms(50)
    points = [measured(turn, per_s * factor, p50_ms * factor) for turn, factor in enumerate((0.8, 0.1, 2.0))]
    [found] = checked = check.compare(calibrating, points, 20.0, 2)
    assert found.errors == pytest.approx((0.25, 0.25))
    assert not check.within_limit(checked)
    assert check.within_limit(check.compare(calibrating, [measured(0, per_s, p50_ms)], 20.0, 2))
    assert "| 1 | 8 |" in check.table(checked, points)
    assert "+25% (-50% to +900%)" in check.table(checked, points)


def test_a_round_is_predicted_from_what_its_own_pool_cost_in_it() -> None:
    """The machine is half as fast in the second round, and pools of two workers were never looked at."""
    calibrating = [point(size, turn, turn + 1.0) for turn in range(2) for size in SIZES]
    per_s = check.predict(calibrate.fit(calibrating[: len(SIZES)], 0.0), 1, 8, 2).per_s
    others = [replace(each, workers=2, cpu_us=dict.fromkeys(each.cpu_us, 9e9)) for each in calibrating]
    points = [measured(turn, per_s / (turn + 1), 1.0) for turn in range(2)]
    [found] = check.compare([*calibrating, *others], points, 0.0, 2)
    assert check.errors(found.per_s) == pytest.approx([0.0, 0.0], abs=0.01)


@pytest.mark.usefixtures("short_rounds")
def test_what_the_hypervisor_takes_is_not_there() -> None:
    calibrating = [point(size) for size in SIZES]
    predicted = check.predict(calibrate.fit(calibrating, 20.0), 1, 8, 2)
    per_s, p50_ms = predicted.per_s / 1.5, predicted.percentile_ms(50) * 1.5
    [found] = check.compare(calibrating, [measured(0, per_s, p50_ms, stolen=0.5)], 20.0, 2)
    assert found.errors == pytest.approx((0.0, 0.0))


def test_the_page_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("by hand\n<!-- costs -->\nold\n<!-- end -->\nmore\n")
    page.fill(path, {"costs": r"new \1"})
    assert path.read_text() == "by hand\n<!-- costs -->\nnew \\1\n<!-- end -->\nmore\n"
    with pytest.raises(ValueError, match="lacks the part check"):
        page.fill(path, {"check": ""})


def test_a_worker_that_finds_its_next_batch_with_the_last_one_never_asks_for_it() -> None:
    """Under load the queue is hardly ever empty: a batch costs Redis what it costs without `ask`, and is as much."""
    costs = Costs(**{**vars(COSTS), "controller": Cost(10.0, 10.0), "worker": Cost(0.0, 100.0)})
    run = Run(costs, Plan(variation=0.0))
    run.close_loop(256)
    seen = run.watch(0.5, 2.0)
    assert seen.utilisation["worker"] > 0.9  # the rest are round trips
    n_batches = seen.per_s / seen.batch_jobs
    spent_s = seen.utilisation["Redis"]
    asked_s = n_batches * COSTS.redis.batch * SHARES["ask"][0] * 1e-6
    whole_s = n_batches * COSTS.redis.of(seen.batch_jobs) * 1e-6
    assert spent_s == pytest.approx(whole_s - asked_s, rel=0.02)
