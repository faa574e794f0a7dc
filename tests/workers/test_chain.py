"""A worker goes on to the next batch without Celery: in order, not for long, and not once it drains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from app.redis.client import ledger_errors
from tests.conftest import WaitUntil
from tests.pool_samples import new_batch
from tests.workers.runner_bench import RETENTION_S, Bench, score, statuses
from workers import batch_runner


@pytest.fixture(autouse=True)
def enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr(batch_runner, "CHAIN_S", 60.0)


class Interrupted(WorkerLedger):
    """The ledger of a worker to which something happens when it asks for a batch."""

    def __init__(self, bench: Bench, happens: Callable[[], None]) -> None:
        super().__init__(bench.client, "host-1", bench.queue, RETENTION_S)
        self.happens = happens

    def take(self, limit_s: float = 0) -> None:
        self.happens()
        super().take(limit_s)


def queue_up(bench: Bench, n_batches: int, n_jobs: int = 1) -> list[str]:
    """Accept batches whose messages name them; the first message has been taken by Celery."""
    made = [new_batch(n_jobs) for _ in range(n_batches)]
    for each in made:
        bench.accept(replace(each, message=b'{"correlation_id": "%s"}' % each.batch_id.encode()))
    bench.client.rpop(bench.queue)
    return [each.batch_id for each in made]


def drain_after(bench: Bench, n_passes: int) -> tuple[list[Any], Any]:
    """The passes that a model saw, and the model: the worker is told to stop during the last of them."""
    passes: list[Any] = []

    def predict(samples: Any) -> Any:
        passes.append(samples)
        if len(passes) == n_passes:
            bench.heartbeat.set_state("draining")
        return score(samples)

    return passes, predict


def test_batches_run_in_the_order_of_the_queue_until_it_is_empty(bench: Bench) -> None:
    batches = queue_up(bench, 5, n_jobs=2)
    _, predict = drain_after(bench, 5)
    ran = list(bench.runner(predict).run_chain(batches[0]))
    assert [each.batch_id for each in ran] == batches
    assert {each.result for each in ran} == {"2 of 2 jobs succeeded"}
    assert sorted(each.at_s for each in ran) == [each.at_s for each in ran]
    assert all(bench.outcome(batch) for batch in batches)
    assert (bench.client.llen(bench.queue), bench.client.hlen(keys.running(bench.queue))) == (0, 0)


def test_a_worker_that_drains_takes_nothing_more(bench: Bench) -> None:
    batches = queue_up(bench, 4)
    passes, predict = drain_after(bench, 2)
    assert [each.batch_id for each in bench.runner(predict).run_chain(batches[0])] == batches[:2]
    assert len(passes) == 2
    assert bench.client.llen(bench.queue) == 2
    assert not bench.client.hexists(keys.batch(batches[2]), "attempts")


def test_a_worker_that_is_told_to_stop_while_it_waits_runs_what_that_brings_and_no_more(bench: Bench) -> None:
    batches = queue_up(bench, 1)

    def told_meanwhile() -> None:
        batches.extend(queue_up(bench, 3)[1:])  # the others' messages are on the queue
        bench.heartbeat.set_state("draining")

    runner = bench.runner(score, ledger=Interrupted(bench, told_meanwhile))
    ran = [each.batch_id for each in runner.run_chain(batches[0])]
    assert ran == batches[:2]
    assert (bench.client.llen(bench.queue), bench.client.hlen(keys.running(bench.queue))) == (1, 0)


def test_celerys_loop_gets_its_turn_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "CHAIN_S", 0.0)
    batches = queue_up(bench, 3)
    assert [each.batch_id for each in bench.runner(score).run_chain(batches[0])] == batches[:1]
    assert (bench.client.llen(bench.queue), bench.client.hlen(keys.running(bench.queue))) == (2, 0)


def test_a_batch_that_comes_while_the_worker_waits_is_run(bench: Bench, wait_until: WaitUntil) -> None:
    [first] = queue_up(bench, 1)
    _, predict = drain_after(bench, 2)
    runner = bench.runner(predict)
    ran: list[str] = []
    thread = threading.Thread(target=lambda: ran.extend(each.batch_id for each in runner.run_chain(first)))
    thread.start()
    wait_until(lambda: bench.outcome(first), what="the first has run")
    second = new_batch()
    bench.accept(replace(second, message=b'{"correlation_id": "%s"}' % second.batch_id.encode()))
    thread.join(30)
    assert ran == [first, second.batch_id]


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"[" * 10_000, b'{"correlation_id": "../../../etc"}'])
def test_garbage_between_two_batches_is_left_to_celerys_consumer(bench: Bench, garbage: bytes) -> None:
    batches = queue_up(bench, 2)
    bench.client.rpush(bench.queue, garbage)
    assert [each.batch_id for each in bench.runner(score).run_chain(batches[0])] == batches[:1]
    assert bench.client.lindex(bench.queue, -1) == garbage
    assert statuses(bench.outcome(batches[0])) == ["succeeded"]


def test_a_batch_that_cannot_be_read_is_closed_and_the_next_one_is_run(bench: Bench) -> None:
    batches = queue_up(bench, 3)
    bench.client.hset(keys.batch(batches[1]), "head", b"\xc1")
    _, predict = drain_after(bench, 2)
    results = [each.result for each in bench.runner(predict).run_chain(batches[0])]
    assert results == ["1 of 1 jobs succeeded", "unreadable", "1 of 1 jobs succeeded"]
    assert [statuses(bench.outcome(batch)) for batch in batches] == [["succeeded"], ["failed"], ["succeeded"]]


def test_a_batch_taken_with_the_one_before_that_kills_its_worker_runs_job_by_job(bench: Bench) -> None:
    class DiedError(BaseException):
        """Stands for a signal."""

    passes: list[list[float]] = []

    def predict(samples: Any) -> Any:
        passes.append(samples[:, 0].tolist())
        if 2 in samples:
            raise DiedError
        return score(samples)

    first, killer = queue_up(bench, 2, n_jobs=1)[0], new_batch(3)
    bench.client.rpop(bench.queue)
    bench.accept(replace(killer, message=b'{"correlation_id": "%s"}' % killer.batch_id.encode()))
    with pytest.raises(DiedError):
        list(bench.runner(predict, "life-0").run_chain(first))
    assert statuses(bench.outcome(first)) == ["succeeded"]
    lives = 0
    while bench.outcome(killer.batch_id) is None:
        bench.requeue(killer.batch_id, f"life-{lives}")
        lives += 1
        try:
            bench.runner(predict, f"life-{lives}").run(killer.batch_id)
        except DiedError:
            continue
    outcome = bench.outcome(killer.batch_id)
    assert outcome
    assert [job.error_code for job in outcome.jobs] == ["", "", "job_quarantined"]
    assert lives == 3


def test_a_worker_whose_redis_goes_away_while_it_waits_gives_celery_its_turn(bench: Bench) -> None:
    [first] = queue_up(bench, 1)

    def cut() -> None:
        with ledger_errors():
            raise ConnectionError("cut")

    runner = bench.runner(score, ledger=Interrupted(bench, cut))
    assert [each.batch_id for each in runner.run_chain(first)] == [first]
