"""One batch in a worker: a real ledger on a real Redis, and models that are plain functions of arrays."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

from app.clock import PoolClock
from app.ledger import wire
from app.ledger.wire import JobEntry
from app.ledger.worker_ledger import WorkerLedger, keep_outcome
from app.redis import keys
from app.settings import Settings
from tests.pool_samples import PAIR, head, new_batch, now_ms, record
from tests.workers.runner_bench import RETENTION_S, Bench, Predict, score, statuses
from workers.batch_runner import TIMED_OUT, BatchRunner
from workers.process.heartbeat import Heartbeat
from workers.process.in_flight_marker import InFlightMarker
from workers.process.time_limit import TimeLimit
from workers.warm_up import LoadedModel


def test_a_batch_runs_in_one_pass_and_each_job_gets_its_rows(bench: Bench) -> None:
    calls = []

    def predict(samples: Any) -> Any:
        calls.append(samples.shape)
        return score(samples)

    jobs = [JobEntry(n, now_ms(), now_ms() + 60_000, "", forced=False) for n in (1, 2, 1)]
    batch_id = bench.accept(new_batch(3, jobs=jobs))
    assert bench.runner(predict).run(batch_id) == "3 of 3 jobs succeeded"
    outcome = bench.outcome(batch_id)
    assert outcome
    assert calls == [(4, 2)]
    assert [job.classes for job in outcome.jobs] == [[0], [0, 1], [1]]
    assert isinstance(outcome.jobs[1].scores, bytes)
    assert np.frombuffer(outcome.jobs[1].scores, "<f4").reshape(2, 2).tolist() == [[0, 0], [-1, 1]]
    assert (outcome.worker_id, outcome.n_samples) == ("host-1", 4)
    assert outcome.finished_at_ms >= outcome.started_at_ms > 0
    assert bench.client.hget(keys.BACKLOG, bench.queue) == b"0"


def test_a_bad_sample_fails_alone_and_its_details_stay_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def predict(samples: Any) -> Any:
        if (samples == 1).any():
            raise ValueError("secret path /etc/x")
        return score(samples)

    batch_id = bench.accept(new_batch(3))
    assert bench.runner(predict).run(batch_id) == "2 of 3 jobs succeeded"
    outcome = bench.outcome(batch_id)
    assert statuses(outcome) == ["succeeded", "failed", "succeeded"]
    assert outcome
    assert outcome.jobs[1].error_code == "model_failed"
    assert "secret" not in outcome.jobs[1].error_detail
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "predict",
    [
        lambda samples: score(samples)[:-1],
        lambda samples: np.array(["a"] * len(samples)),
        lambda samples: np.zeros((len(samples), 1, 1)),
        lambda samples: np.zeros((len(samples), 0)),
        lambda samples: samples.astype(np.longdouble),
        lambda samples: samples.astype(complex),
    ],
    ids=["too few rows", "text", "too many dimensions", "no columns", "too wide numbers", "complex numbers"],
)
def test_a_model_that_breaks_its_contract_fails_its_jobs(bench: Bench, predict: Predict) -> None:
    batch_id = bench.accept(new_batch(2))
    bench.runner(predict).run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome
    assert {job.error_code for job in outcome.jobs} == {"model_contract"}


@pytest.mark.parametrize(
    ("predict", "classes"),
    [
        (lambda samples: samples[:, 0] * 2, [0.0, 2.0]),
        (lambda samples: samples[:, :1], [0.0, 1.0]),
        (lambda samples: samples[:, 0].astype(int), [0, 1]),
        (lambda samples: samples[:, 0] > 0, [0, 1]),
    ],
    ids=["values", "one column", "labels", "booleans"],
)
def test_a_model_without_scores_answers_classes_or_values(
    bench: Bench, predict: Predict, classes: list[float]
) -> None:
    batch_id = bench.accept(new_batch(2))
    bench.runner(predict).run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome
    assert [job.classes[0] for job in outcome.jobs] == classes
    assert {job.scores for job in outcome.jobs} == {b""}


def test_cancelled_and_expired_jobs_are_not_run(bench: Bench) -> None:
    deadlines = [now_ms() + 60_000, now_ms() - 1, now_ms() + 60_000]
    jobs = [JobEntry(1, now_ms(), deadline, "", forced=False) for deadline in deadlines]
    batch_id = bench.accept(new_batch(3, jobs=jobs))
    bench.client.hset(keys.batch(batch_id), "c:0", 1)
    seen = []

    def predict(samples: Any) -> Any:
        seen.extend(samples[:, 0].tolist())
        return score(samples)

    bench.runner(predict).run(batch_id)
    assert statuses(bench.outcome(batch_id)) == ["cancelled", "expired", "succeeded"]
    assert seen == [2]


def test_a_batch_with_nothing_to_run_never_calls_the_model(bench: Bench) -> None:
    batch_id = bench.accept(new_batch(2, deadline_ms=now_ms() - 1))
    bench.runner(lambda _: pytest.fail("called")).run(batch_id)
    assert statuses(bench.outcome(batch_id)) == ["expired", "expired"]


def test_an_outcome_that_comes_too_late_is_refused(bench: Bench) -> None:
    batch_id = bench.accept(new_batch())

    def predict(samples: Any) -> Any:
        bench.requeue(batch_id, "slow")
        return score(samples)

    assert bench.runner(predict, "slow").run(batch_id).startswith("too late")
    assert bench.outcome(batch_id) is None
    bench.runner(score, "heir").run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome
    assert outcome.worker_id == "heir"


def test_a_finished_claimed_or_unknown_batch_is_nothing_to_do(bench: Bench) -> None:
    batch_id = bench.accept(new_batch())
    runner = bench.runner(score)
    assert runner.run(batch_id) == "1 of 1 jobs succeeded"
    assert runner.run(batch_id).startswith("nothing to do")
    assert runner.run("unknown").startswith("nothing to do")
    other = bench.accept(new_batch())
    WorkerLedger(bench.client, "other", bench.queue, RETENTION_S).claim(other)
    assert runner.run(other).startswith("nothing to do")


def test_a_batch_of_a_newer_release_is_left_for_a_worker_that_can_read_it(bench: Bench) -> None:
    batch_id = bench.accept(new_batch())
    bench.client.hset(keys.batch(batch_id), "head", wire.encode({"schema_version": 9, "jobs": "otherwise"}))
    assert bench.runner(score).run(batch_id) == "unreadable"
    assert not bench.client.exists(keys.running(bench.queue))
    assert bench.outcome(batch_id) is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"head": b"?"}, id="head"),
        pytest.param({"head": wire.encode(head(3))}, id="head of another size"),
        pytest.param({"head": wire.encode(head(2, queue_version=2))}, id="head of another queue"),
        pytest.param(
            {"head": wire.encode(head(2, dtype="nonsense", deadline_ms=now_ms() + 3_600_000))}, id="dtype"
        ),
        pytest.param({"data": b"too short"}, id="data"),
        pytest.param({"attempts": b"often"}, id="attempts"),
        pytest.param({"c:first": b"1"}, id="cancelled index"),
        pytest.param({"x:0": b"?"}, id="deaths"),
        pytest.param({"o:0": b"?"}, id="kept outcome"),
        pytest.param({"head": None}, id="no head"),
        pytest.param({"data": None}, id="no data"),
        pytest.param(None, id="no hash"),
    ],
)
def test_a_batch_that_cannot_be_read_is_closed_at_once(
    bench: Bench, damage: dict[str, bytes | None] | None
) -> None:
    batch_id = bench.accept(new_batch(2))
    name = keys.batch(batch_id)
    bench.client.hset(name, "c:1", 1)
    if damage is None:
        bench.client.set(name, b"not even a hash")
    for field, value in (damage or {}).items():
        if value is None:
            bench.client.hdel(name, field)
        else:
            bench.client.hset(name, field, value)
    assert bench.runner(score).run(batch_id) == "unreadable"
    assert statuses(bench.outcome(batch_id)) == ["failed", "cancelled" if damage else "failed"]
    left = [bench.client.exists(each(bench.queue)) for each in (keys.running, keys.pending, keys.open_jobs)]
    assert left == [0, 0, 0]
    assert bench.client.hget(keys.BACKLOG, bench.queue) == b"0"
    assert 0 < bench.client.pttl(name) <= RETENTION_S * 1000


def test_a_quarantined_job_keeps_its_samples_and_is_listed(bench: Bench) -> None:
    batch_id = bench.accept(new_batch(3))
    bench.client.hset(keys.batch(batch_id), mapping={"attempts": 3, "x:1": 2})
    assert bench.runner(score).run(batch_id) == "2 of 3 jobs succeeded"
    outcome = bench.outcome(batch_id)
    assert outcome
    assert outcome.jobs[1].error_code == "job_quarantined"
    assert bench.client.zrange(keys.QUARANTINE, 0, -1) == [f"{batch_id}.1".encode()]
    kept = bench.client.hget(keys.batch(batch_id), "q:1")
    assert isinstance(kept, bytes)
    assert np.frombuffer(kept, "<f4").tolist() == [1, 1]
    assert not bench.client.hexists(keys.batch(batch_id), "q:0")


def test_redis_away_leaves_the_batch_to_be_sent_again(bench: Bench, tmp_path: Any) -> None:
    from app.redis.client import connect

    client = connect(Settings(redis_url=f"unix://{tmp_path}/none.sock"))
    clock = PoolClock()
    runner = BatchRunner(
        WorkerLedger(client, "host-1", bench.queue, RETENTION_S),
        LoadedModel(PAIR, score, "cpu"),
        Heartbeat(client, record(), clock, 60),
        clock,
        TimeLimit(60),
        InFlightMarker(),
        max_attempts=3,
    )
    assert runner.run("x").startswith("left for the reconciler")


def test_the_heartbeat_counts_what_ran(bench: Bench) -> None:
    runner = bench.runner(score)
    runner.run(bench.accept(new_batch(3)))
    bench.heartbeat.start()
    stored = bench.client.get(keys.worker("host-1"))
    bench.heartbeat.close()
    assert isinstance(stored, bytes)
    from app.worker_record import decode_record

    published = decode_record(stored)
    assert (published.jobs_done, published.batches_done, published.batch_samples_last) == (3, 1, 3)
    assert published.running_batch == ""
    assert published.inference_ms.p99 is not None


def test_a_job_that_hangs_in_a_batch_times_out_alone(bench: Bench) -> None:
    def hangs_on_two(samples: Any) -> Any:
        if 2 in samples:
            signal.raise_signal(signal.SIGALRM)  # as the timer would, had it gone on for so long
        return score(samples)

    handler = signal.getsignal(signal.SIGALRM)
    bench.limit.install()
    try:
        batch_id = bench.accept(new_batch(4))
        bench.runner(hangs_on_two).run(batch_id)
    finally:
        signal.signal(signal.SIGALRM, handler)
    outcome = bench.outcome(batch_id)
    assert outcome is not None
    assert [job.status for job in outcome.jobs] == ["succeeded", "succeeded", "failed", "succeeded"]
    assert outcome.jobs[2].error_code == "timed_out"


def test_a_job_that_only_the_end_of_the_process_could_end_has_timed_out(bench: Bench) -> None:
    class EndedError(BaseException):
        """The watchdog's `os._exit`."""

    def ended_on_one(samples: Any) -> Any:
        if 1 in samples:
            watchdog = threading.Thread(target=runner.close_hung_job)
            watchdog.start()
            watchdog.join()
            raise EndedError
        return score(samples)

    batch_id = bench.accept(new_batch(3))
    for worker_id in ("together", "alone"):
        runner = bench.runner(ended_on_one, worker_id)
        with pytest.raises(EndedError):
            runner.run(batch_id)
        bench.requeue(batch_id, worker_id)
    bench.runner(score, "last").run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome is not None
    assert [job.error_code for job in outcome.jobs] == ["", "timed_out", ""]


def test_a_job_that_its_dead_worker_hung_in_has_timed_out_when_its_batch_is_claimed_next(
    bench: Bench,
) -> None:
    class EndedError(BaseException):
        """The end of a process that no thread of it could foresee."""

    def ended_on_one(samples: Any) -> Any:
        if 1 in samples:
            raise EndedError
        return score(samples)

    batch_id = bench.accept(new_batch(3))
    for worker_id in ("together", "alone"):
        with pytest.raises(EndedError):
            bench.runner(ended_on_one, worker_id).run(batch_id)
        bench.requeue(batch_id, worker_id)
    keep_outcome(bench.client, batch_id, 1, TIMED_OUT)
    keep_outcome(bench.client, batch_id, 0, TIMED_OUT)  # it had succeeded before
    bench.runner(score, "last").run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome is not None
    assert [job.error_code for job in outcome.jobs] == ["", "timed_out", ""]
    keep_outcome(bench.client, batch_id, 2, TIMED_OUT)
    assert not bench.client.hexists(keys.batch(batch_id), "o:2")


def test_a_job_whose_deadline_passes_while_its_batch_runs_job_by_job_expires(bench: Bench) -> None:
    deadline_ms = now_ms() + 300

    def slow_alone(samples: Any) -> Any:
        if len(samples) > 1:
            raise ValueError("runs job by job")
        time.sleep(max(0.0, (deadline_ms - now_ms()) / 1000))
        return score(samples)

    batch_id = bench.accept(new_batch(2, deadline_ms=deadline_ms))
    bench.runner(slow_alone).run(batch_id)
    outcome = bench.outcome(batch_id)
    assert outcome is not None
    assert [job.status for job in outcome.jobs] == ["succeeded", "expired"]
