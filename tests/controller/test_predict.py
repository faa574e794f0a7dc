"""`POST /predict` from the request to the answer, with a worker played by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from app.contract import TensorContract
from app.ledger.commands import Accept
from app.ledger.wire import JobOutcome
from app.redis import keys
from app.redis.link import Done
from app.redis.script import Call
from modelyard.schemas import Latency
from tests.controller.conftest import HandWorker, Serve, until
from tests.pool_samples import CONTRACT, MODEL, outcome

HandWorkers = Callable[..., HandWorker]


async def test_a_prediction_is_accepted_with_a_receipt_and_where_to_poll(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker(1, val_accuracy=0.97)
    served = await serve()
    answer = await served.post({"data": [1, 2]})
    receipt = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == receipt["result_url"] == f"/results/{receipt['id']}"
    assert receipt | {"id": "", "result_url": ""} == {
        "id": "",
        "status": "queued",
        "worker": 1,
        "model_name": MODEL,
        "model_version": 1,
        "val_accuracy": 0.97,
        "policy": "highest_val_accuracy",
        "forced": False,
        "result_url": "",
    }
    assert client.hgetall(keys.BACKLOG) == {keys.queue_name(MODEL, 1).encode(): b"1"}


@pytest.mark.parametrize(
    ("shape", "n_samples"),
    [((784,), 1), ((28, 28), 1), ((1, 1, 28, 28), 1), ((3, 784), 3), ((2, 1, 28, 28), 2), ((20, 28, 28), 20)],
)
@pytest.mark.parametrize("key", ["data", "instances"])
async def test_samples_reach_the_worker_as_float32_however_they_are_nested(
    serve: Serve, hand_worker: HandWorkers, shape: tuple[int, ...], n_samples: int, key: str
) -> None:
    worker = hand_worker(input=CONTRACT)
    served = await serve()
    samples = np.arange(np.prod(shape)).reshape(shape) / 8
    answer = await served.post({key: samples.tolist()})
    batch = await worker.claimed()
    assert answer.status_code == 202
    assert [job.n_samples for job in batch.head.jobs] == [n_samples]
    assert np.array_equal(np.frombuffer(batch.data, "<f4"), samples.reshape(-1).astype("<f4"))


async def test_a_caller_that_waits_gets_the_outcome(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve()
    post = asyncio.create_task(served.post({"data": [[1, 2], [3, 4]]}, "?wait=3"))
    batch = await worker.claimed()
    scores = np.array([[0.25, 0.75], [1, 0]], "<f4").tobytes()
    worker.finish(batch, outcome(jobs=[JobOutcome("succeeded", [1, 0], scores)], n_samples=2))
    answer = await post
    job = answer.json()
    assert (answer.status_code, job["status"]) == (200, "succeeded")
    assert job["predictions"] == [{"class": 1, "scores": [0.25, 0.75]}, {"class": 0, "scores": [1.0, 0.0]}]
    assert (job["worker_id"], job["batch_samples"], job["inference_ms"]) == ("host-1", 2, 1.5)
    assert job["queue_wait_ms"] >= 0
    assert job["end_to_end_ms"] >= 0
    assert served.services.dispatcher.sent == {}


async def test_a_failed_job_tells_its_error_to_the_caller_that_waits(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    post = asyncio.create_task(served.post(query="?wait=3"))
    failed = JobOutcome("failed", error_code="model_failed", error_detail="the model failed on this input")
    worker.finish(await worker.claimed(), outcome(jobs=[failed]))
    answer = await post
    assert (answer.status_code, answer.json()["status"]) == (200, "failed")
    assert answer.json()["error"] == {"code": "model_failed", "detail": "the model failed on this input"}


async def test_numbers_that_json_cannot_spell_come_back_as_null(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    post = asyncio.create_task(served.post(query="?wait=3"))
    scores = np.array([np.nan, np.inf], "<f4").tobytes()
    worker.finish(await worker.claimed(), outcome(jobs=[JobOutcome("succeeded", [float("nan")], scores)]))
    assert (await post).json()["predictions"] == [{"class": None, "scores": [None, None]}]


async def test_a_wait_that_ends_before_the_outcome_is_answered_with_the_receipt(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    answer = await served.post(query="?wait=0.05")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    worker.finish(await worker.claimed())
    job = await served.http.get(answer.headers["location"])
    assert job.json()["status"] == "succeeded"


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("wait=3", 200),
        ("WAIT=30", 200),
        ('wait="3"', 200),
        ("handling=lenient, wait=3", 200),
        ("respond-async, wait=3", 200),  # RFC 7240, section 4.3: wait that long, then answer 202
        ("wait=100000", 200),  # a preference that cannot be met whole is met in part, never refused
        ("respond-async", 202),
        ("wait=0", 202),
        ("wait=soon", 202),
        ("wait", 202),
        ("handling=lenient; wait=3", 202),  # a parameter of another preference
        ("", 202),
    ],
)
async def test_the_prefer_header_says_how_long_to_wait(
    serve: Serve, hand_worker: HandWorkers, prefer: str, status: int
) -> None:
    worker = hand_worker()
    served = await serve()
    post = asyncio.create_task(served.post(prefer=prefer))
    batch = await worker.claimed()
    if status == 202:
        assert (await post).status_code == 202
    worker.finish(batch)
    assert (await post).status_code == status


async def test_the_query_says_more_than_the_prefer_header(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve()
    assert (await served.post(query="?wait=0", prefer="wait=3")).status_code == 202


@pytest.mark.parametrize(
    ("query", "worker", "forced"),
    [
        ("", 2, False),
        ("?worker=1", 1, True),
        ("?worker=2", 2, True),
        (f"?model={MODEL}", 2, False),
        (f"?model={MODEL}&version=1", 1, True),
        ("?version=1", 1, True),
    ],
)
async def test_the_best_version_is_chosen_unless_one_is_named(
    serve: Serve, hand_worker: HandWorkers, query: str, worker: int, forced: bool
) -> None:
    hand_worker(1, val_accuracy=0.8)
    hand_worker(2, val_accuracy=0.9)
    served = await serve()
    receipt = (await served.post(query=query)).json()
    assert (receipt["worker"], receipt["forced"]) == (worker, forced)
    assert receipt["policy"] == ("forced" if forced else "highest_val_accuracy")


async def test_traffic_moves_when_the_better_worker_stops_and_back_when_it_returns(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1, val_accuracy=0.8)
    better = hand_worker(2, val_accuracy=0.9)
    served = await serve(heartbeat_s=60)  # so that only the workers' own notices can tell

    async def chosen() -> int:
        number: int = (await served.post()).json()["worker"]
        return number

    assert await chosen() == 2
    await _listening(served.services.dispatcher, better)
    better.stop()
    await until(lambda: len(served.services.watcher.view.records) == 1, "the better worker is gone")
    assert await chosen() == 1
    better.start()
    await until(lambda: len(served.services.watcher.view.records) == 2, "the better worker is back")
    assert await chosen() == 2


async def _listening(_: object, worker: HandWorker) -> None:
    await until(
        lambda: worker.client.pubsub_numsub(keys.POOL_CHANNEL)[0][1] > 0, "the controller is subscribed"
    )


async def test_jobs_that_arrive_while_a_batch_is_out_travel_together(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve(batch_hold_ms=1000)
    first = (await served.post({"data": [0, 0]})).json()
    posts = [asyncio.create_task(served.post({"data": [i, i]})) for i in range(1, 6)]
    lane = served.services.dispatcher.lane(keys.queue_name(MODEL, 1))
    await until(lambda: len(lane.unsent) == 5, "five jobs are held")
    assert not any(post.done() for post in posts)
    worker.finish(await worker.claimed())
    jobs = [(await post).json()["id"] for post in posts]
    batch = await worker.claimed()
    assert {each.split(".")[0] for each in jobs} == {batch.batch_id} != {first["id"].split(".")[0]}
    samples = np.frombuffer(batch.data, "<f4").reshape(-1, 2)[:, 0].tolist()
    assert sorted(samples) == [1, 2, 3, 4, 5]


async def test_a_batch_leaves_at_once_when_it_is_full(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve(batch_hold_ms=1000, batch_max_jobs=2)
    await served.post()
    posts = await asyncio.gather(served.post(), served.post())
    assert {each.status_code for each in posts} == {202}
    assert [len((await worker.claimed()).head.jobs) for _ in range(2)] == [1, 2]


async def test_a_batch_holds_no_more_samples_than_the_limit(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve(batch_max_samples=3)
    body = {"data": [[1, 2], [3, 4]]}
    await asyncio.gather(*(served.post(body) for _ in range(3)))
    assert [len((await worker.claimed()).head.jobs) for _ in range(3)] == [1, 1, 1]


async def test_jobs_are_accepted_though_no_worker_takes_them(serve: Serve, hand_worker: HandWorkers) -> None:
    hand_worker()
    served = await serve()
    answers = await asyncio.gather(*(served.post() for _ in range(50)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 50


async def test_closing_the_controller_sends_what_it_holds(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve(batch_hold_ms=1000)
    await served.post()
    post = asyncio.create_task(served.post())
    lane = served.services.dispatcher.lane(worker.record.queue)
    await until(lambda: lane.unsent, "a job is held")
    await served.services.dispatcher.close()
    assert (await post).status_code == 202
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"2"


async def test_a_full_queue_refuses_with_429_and_when_to_come_back(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(backlog_limit=2)
    for _ in range(2):
        assert (await served.post()).status_code == 202
    await served.services.watcher.refresh()
    answer = await served.post()
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) >= 1


SLOW: dict[str, Any] = {"inference_ms": Latency(999, 999, 999), "jobs_done": 10, "batches_done": 10}


async def test_a_queue_is_full_for_a_job_that_would_wait_too_long_for_its_deadline(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(**SLOW)  # a second a batch
    served = await serve()
    assert (await served.post(query="?deadline=1")).status_code == 202, "nothing is ahead of it"
    early = await served.post(query="?deadline=1")
    assert (early.status_code, early.json()["code"]) == (429, "queue_full")
    assert early.headers["retry-after"] == "1"
    assert "1.0 s" in early.json()["detail"]
    assert (await served.post(query="?deadline=2")).status_code == 202
    late = await served.post(query="?deadline=2")
    assert late.status_code == 429
    assert 1 < int(late.headers["retry-after"]) <= 4, "one was told to come back before"
    assert (await served.post()).status_code == 202, "the default deadline is far away"


async def test_a_burst_is_refused_from_the_job_on_that_would_come_too_late(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(**SLOW)
    served = await serve(batch_max_jobs=10)
    answers = await asyncio.gather(*(served.post(query="?deadline=4") for _ in range(100)))
    # Two seconds of waiting are two batches ahead; no reading of the pool came in between.
    accepted = [answer for answer in answers if answer.status_code == 202]
    assert 20 <= len(accepted) <= 30
    assert {answer.status_code for answer in answers} == {202, 429}


async def test_a_queue_that_another_controller_filled_is_full_here_too(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(**SLOW)
    first, second = await serve(), await serve()
    for _ in range(3):
        assert (await first.post()).status_code == 202
    await second.services.watcher.refresh()
    assert (await second.post(query="?deadline=4")).status_code == 429
    assert (await second.post(query="?deadline=10")).status_code == 202


async def test_a_full_queue_is_empty_again_once_its_outcomes_are_heard(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker(**SLOW)
    served = await serve()
    await served.post()
    assert (await served.post(query="?deadline=1")).status_code == 429
    worker.finish(await worker.claimed())
    await until(lambda: not served.services.dispatcher.sent, "the outcome is heard")
    assert (await served.post(query="?deadline=1")).status_code == 202


async def test_a_full_queue_does_not_look_at_the_body_where_that_decides_nothing(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(1, **SLOW)
    served = await serve()
    await served.post()
    assert (await served.post(b"no JSON", "?deadline=1")).status_code == 429
    assert (await served.post(b"no JSON")).status_code == 400, "there is room for it"
    hand_worker(2, val_accuracy=0.1, input=TensorContract("float32", (3,)))
    await until(lambda: len(served.services.watcher.view.records) == 2, "the second is seen")
    assert (await served.post(b"no JSON", "?deadline=1")).status_code == 400
    assert (await served.post({"data": [1, 2, 3]}, "?deadline=1")).json()["worker"] == 2
    assert (await served.post({"data": [1, 2]}, "?deadline=1")).status_code == 429


async def test_a_held_job_whose_deadline_passes_is_refused_and_not_sent(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve(batch_hold_ms=300)
    await served.post()
    late, later = await asyncio.gather(served.post(query="?deadline=0.1"), served.post())
    assert (late.status_code, late.json()["code"]) == (429, "queue_full")
    assert "the deadline passed" in late.json()["detail"]
    assert later.status_code == 202
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"2"
    backlog = served.services.dispatcher.lane(worker.record.queue).backlog
    assert (backlog.unsent_jobs, backlog.sent_jobs, backlog.sent_batches) == (0, 2, 2)


async def test_a_caller_that_waits_past_its_deadline_hears_of_it_before_the_batch_is_closed(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker()
    served = await serve()
    answer = await served.post(query="?deadline=0.1&wait=20")
    job = answer.json()
    assert (answer.status_code, job["status"], job["error"]["code"]) == (200, "expired", "job_expired")
    assert not client.hexists(keys.batch(job["id"].split(".")[0]), "out")


async def test_a_job_that_was_taken_before_its_deadline_is_waited_for_beyond_it(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    # So that nobody misses the batch in the record of a worker that has it.
    served = await serve(heartbeat_s=60)
    post = asyncio.create_task(served.post(query="?deadline=1&wait=20"))
    batch = await worker.claimed()
    now_ms = served.services.clock.now_ms
    await until(lambda: now_ms() > batch.head.jobs[0].deadline_ms + 300, "the deadline has passed")
    assert not post.done()
    worker.finish(batch)
    assert (await post).json()["status"] == "succeeded"


async def test_a_repeated_post_with_an_idempotency_key_returns_the_first_job(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served, other = await serve(), await serve()
    first = await served.post(idempotency_key="abc")
    again = await other.post(idempotency_key="abc")
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert client.llen(worker.record.queue) == 1
    assert all(client.pttl(name) > 0 for name in client.scan_iter(keys.once("*")))


async def test_a_repeated_post_that_waits_gets_the_first_jobs_outcome(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    post = asyncio.create_task(served.post(query="?wait=3", idempotency_key="abc"))
    worker.finish(await worker.claimed())
    first = await post
    again = await served.post(query="?wait=3", idempotency_key="abc")
    assert (again.status_code, again.json()) == (200, first.json())


async def test_a_repeated_post_of_an_expired_job_is_answered_like_the_first(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve()
    answers = [
        await served.post(query="?deadline=0.1&wait=20", idempotency_key="abc", x_request_id="same")
        for _ in range(2)
    ]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["status"] == "expired"


async def test_an_idempotency_key_for_another_request_is_a_conflict(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    await served.post({"data": [1, 2]}, idempotency_key="abc")
    for answer in (
        await served.post({"data": [1, 3]}, idempotency_key="abc"),
        await served.post({"data": [1, 2]}, "?deadline=5", idempotency_key="abc"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_conflict")
    assert client.llen(worker.record.queue) == 1


async def test_two_posts_at_once_with_one_idempotency_key_make_one_job(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served, other = await serve(), await serve()
    answers = await asyncio.gather(*(each.post(idempotency_key="abc") for each in [served, other] * 5))
    assert {answer.status_code for answer in answers} <= {202, 503}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"1"


async def test_an_idempotency_key_is_free_again_when_its_job_was_not_accepted(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_worker()
    served = await serve()

    def refuse(_: Call, done: Done, *args: Any) -> None:
        done(*args, RedisConnectionError("no"))

    with monkeypatch.context() as patch:
        patch.setattr(served.services.link, "run_script", refuse)
        assert (await served.post(idempotency_key="abc")).status_code == 503
    assert list(client.scan_iter(keys.once("*"))) == []
    assert (await served.post(idempotency_key="abc")).status_code == 202


async def test_an_unforeseen_failure_to_store_is_answered_and_its_lane_goes_on(
    serve: Serve, hand_worker: HandWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_worker()
    served = await serve()

    def fail(*_: object) -> None:
        raise RuntimeError("no one foresaw this")

    with monkeypatch.context() as patch:
        patch.setattr(Accept, "of", fail)
        answer = await served.post()
    assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
    assert served.services.dispatcher.sent == {}
    assert (await served.post()).status_code == 202


async def test_the_documented_example_can_be_posted_as_it_stands(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker(input=CONTRACT)
    served = await serve()
    document = (await served.http.get("/openapi.json")).json()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    (example,) = body["examples"].values()
    assert (await served.post(json.dumps(example["value"]).encode())).status_code == 202


async def test_a_repeated_post_gets_its_job_even_where_no_worker_is_left_and_whatever_it_waits(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served = await serve()
    first = await served.post(idempotency_key="abc")
    worker.stop()
    await served.services.watcher.refresh()
    assert (await served.post()).status_code == 503
    again = await served.post(query="?wait=0.1", idempotency_key="abc")
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])


async def test_an_idempotency_key_whose_job_was_stored_unconfirmed_stays_with_that_job(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = hand_worker()
    served = await serve()
    run_script = served.services.link.run_script

    def run_and_lose_the_answer(call: Call, done: Done, *args: Any) -> None:
        run_script(call, lambda _: done(*args, RedisConnectionError("the connection was cut")))

    with monkeypatch.context() as patch:
        patch.setattr(served.services.link, "run_script", run_and_lose_the_answer)
        assert (await served.post(idempotency_key="abc")).status_code == 503
    assert (await served.post(idempotency_key="abc")).status_code == 202
    assert client.llen(worker.record.queue) == 1
