"""How waiting jobs become batches, with workers played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import redis

from app.ledger import wire
from app.ledger.commands import LARGE_SAMPLES_BYTES
from app.redis import keys
from controller.batching import ENOUGH_UNAWAITED
from tests.controller.conftest import HandWorker, Serve, nothing_is_queued, until
from tests.pool_samples import outcome

HandWorkers = Callable[..., HandWorker]


@pytest.mark.parametrize(
    ("batch_ms", "n_in_flight", "sizes"),
    [(5.0, 1, [8]), (5000.0, 2, [5, 3])],
    ids=["a fast model", "a slow model"],
)
async def test_two_workers_share_what_would_take_one_of_them_long(
    serve: Serve, hand_worker: HandWorkers, batch_ms: float, n_in_flight: int, sizes: list[int]
) -> None:
    workers = [hand_worker(1, worker_id=name) for name in ("host-1", "host-2")]
    served = await serve(batch_hold_ms=1000)
    await until(lambda: len(served.services.watcher.view.records) == 2, "both workers are seen")
    lane = served.services.dispatcher.lane(workers[0].record.queue)
    for n_jobs in (1, 8):
        lane.backlog.costs.learn(n_jobs, batch_ms)
    in_flight = []
    for worker in workers[:n_in_flight]:
        posted = asyncio.create_task(served.post(query="?wait=5"))
        in_flight.append((worker, await worker.claimed(), posted))
    waiting = [asyncio.create_task(served.post(query="?wait=5")) for _ in range(8)]
    await until(lambda: len(lane.unsent) == 8, "all of them are held")
    worker, batch, _ = in_flight[0]
    worker.finish(batch)
    batches = [await worker.claimed() for _ in sizes]
    assert [len(batch.head.jobs) for batch in batches] == sizes
    for batch in batches:
        worker.finish(batch)
    for worker, batch, _ in in_flight[1:]:
        worker.finish(batch)
    answers = await asyncio.gather(*waiting, *(posted for *_, posted in in_flight))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(
    ("n_waiting", "inference_ms", "sizes"),
    [(63, 1.5, [63]), (130, 1.5, [65, 65]), (130, 0.01, [130])],
    ids=["not many", "many", "many of a quick model"],
)
async def test_many_that_wait_while_little_is_out_travel_in_two_batches(
    serve: Serve, hand_worker: HandWorkers, n_waiting: int, inference_ms: float, sizes: list[int]
) -> None:
    worker = hand_worker(1)
    served = await serve(batch_hold_ms=1000, batches_ahead=1)
    lane = served.services.dispatcher.lane(worker.record.queue)
    lane.backlog.pass_ms = inference_ms

    def is_sent(n_batches: int) -> bool:
        return lane.backlog.sent_batches == n_batches

    posts = []
    for sent in (1, 2):
        posts.append(asyncio.create_task(served.post(query="?wait=5")))
        await until(partial(is_sent, sent), "it is sent")
    posts += [asyncio.create_task(served.post(query="?wait=5")) for _ in range(n_waiting)]
    await until(lambda: len(lane.unsent) == n_waiting, "all of them are held")
    found = []
    for _ in (*posts[:2], *sizes):
        batch = await worker.claimed()
        found.append(len(batch.head.jobs))
        worker.finish(batch, outcome(found[-1], worker.record.worker_id, inference_ms=inference_ms))
    assert found == [1, 1, *sizes]
    assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}


@pytest.mark.parametrize(
    ("n_out", "pass_ms", "n_held"),
    [(8, 1.0, 0), (8, 0.01, 1), (7, 0.01, 0)],
    ids=["slow model", "quick model", "few jobs of a quick model"],
)
async def test_a_batch_waits_ahead_of_a_busy_worker_unless_it_works_off_many_quickly(
    serve: Serve, hand_worker: HandWorkers, n_out: int, pass_ms: float, n_held: int
) -> None:
    worker = hand_worker(1)
    served = await serve(batch_hold_ms=1000, batches_ahead=1)
    lane = served.services.dispatcher.lane(worker.record.queue)
    lane.backlog.pass_ms = pass_ms
    posts = [asyncio.create_task(served.post(query="?wait=5")) for _ in range(n_out)]
    first = await worker.claimed()
    assert len(first.head.jobs) == n_out
    posts.append(asyncio.create_task(served.post(query="?wait=5")))
    await until(
        lambda: lane.backlog.unsent_jobs + lane.backlog.sent_jobs == n_out + 1, "another one is there"
    )
    await asyncio.sleep(0)  # it is sent at the end of the turn, if at all
    assert len(lane.unsent) == n_held
    worker.finish(first)
    second = await worker.claimed()
    worker.finish(second)
    assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}


@pytest.mark.parametrize(
    ("query", "inference_ms", "wait_ms", "n_sent"),
    [
        ("", 0.01, 1.0, ENOUGH_UNAWAITED),
        ("?wait=5", 0.01, 1.0, 0),
        ("", 1.0, 1.0, 0),
        ("", 0.01, 10_000.0, 0),
    ],
    ids=["keeps up", "the outcome is waited for", "a slow model", "a long backlog"],
)
async def test_many_who_wait_for_acceptance_alone_are_not_held_up_for_a_worker_that_keeps_up(
    serve: Serve, hand_worker: HandWorkers, query: str, inference_ms: float, wait_ms: float, n_sent: int
) -> None:
    worker = hand_worker(1)
    served = await serve(batch_hold_ms=1000, batch_hold_behind_ms=5000)
    lane = served.services.dispatcher.lane(worker.record.queue)
    lane.backlog.pass_ms = inference_ms
    lane.backlog.costs.learn(1, wait_ms)
    posts = [asyncio.create_task(served.post())]
    first = await worker.claimed()
    posts += [asyncio.create_task(served.post(query=query)) for _ in range(ENOUGH_UNAWAITED)]
    await until(
        lambda: lane.backlog.unsent_jobs + lane.backlog.sent_jobs == 1 + ENOUGH_UNAWAITED,
        "all of them are there",
    )
    assert lane.backlog.sent_jobs == 1 + n_sent
    worker.finish(first)
    worker.finish(await worker.claimed())
    assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200 if query else 202, 202}


async def test_where_nobody_waits_the_next_batch_gathers_all_that_has_come(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker(1)
    served = await serve(batch_hold_ms=1000)
    dispatcher = served.services.dispatcher
    lane = dispatcher.lane(worker.record.queue)
    first = asyncio.create_task(served.post())
    batch = await worker.claimed()
    held = asyncio.create_task(served.post())
    await until(lambda: len(lane.unsent) == 1, "it is held")
    dispatcher.completed(batch.batch_id, outcome())
    assert len(lane.unsent) == 1
    await asyncio.sleep(0)
    assert not lane.unsent
    assert {answer.status_code for answer in await asyncio.gather(first, held)} == {202}


@pytest.mark.parametrize(
    ("n_samples", "schema_version"), [(4096, wire.SCHEMA_VERSION), (65_535, wire.PIECES_VERSION)]
)
async def test_large_samples_arrive_as_they_were_posted_and_a_full_redis_refuses_them_whole(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis, n_samples: int, schema_version: int
) -> None:
    worker = hand_worker(1)
    served = await serve(max_samples=n_samples, batch_max_samples=n_samples, max_body_bytes=2**23)
    pairs = np.arange(2 * n_samples, dtype="<f4").reshape(-1, 2)
    assert pairs.nbytes > LARGE_SAMPLES_BYTES
    client.config_set("maxmemory", 1)
    try:
        refused = await served.post({"data": pairs.tolist()})
    finally:
        client.config_set("maxmemory", 0)
    assert refused.json()["code"] == "ledger_full"
    assert nothing_is_queued(client)
    posted = asyncio.create_task(served.post({"data": pairs.tolist()}, query="?wait=5"))
    batch = await worker.claimed()
    assert batch.data == pairs.tobytes()
    assert batch.head.schema_version == schema_version  # a worker that knows no pieces leaves them to others
    assert client.pttl(keys.batch(batch.batch_id)) > 0
    worker.finish(batch, outcome(1, n_samples=n_samples))
    assert (await posted).status_code == 200
    assert not client.hexists(keys.batch(batch.batch_id), "data")
