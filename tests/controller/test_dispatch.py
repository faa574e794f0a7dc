"""How waiting jobs become batches, with workers played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.controller.conftest import HandWorker, Serve, until

HandWorkers = Callable[..., HandWorker]


@pytest.mark.parametrize(
    ("batch_ms", "n_in_hand", "sizes"),
    [(5.0, 1, [8]), (5000.0, 2, [5, 3])],
    ids=["a fast model", "a slow model"],
)
async def test_two_workers_share_what_would_take_one_of_them_long(
    serve: Serve, hand_worker: HandWorkers, batch_ms: float, n_in_hand: int, sizes: list[int]
) -> None:
    workers = [hand_worker(1, worker_id=name) for name in ("host-1", "host-2")]
    served = await serve(batch_hold_ms=1000)
    await until(lambda: len(served.services.watcher.view.records) == 2, "both workers are seen")
    lane = served.services.dispatcher.lane(workers[0].record.queue)
    for n_jobs in (1, 8):
        lane.backlog.costs.learn(n_jobs, batch_ms)
    in_hand = []
    for worker in workers[:n_in_hand]:
        posted = asyncio.create_task(served.post(query="?wait=5"))
        in_hand.append((worker, await worker.claimed(), posted))
    waiting = [asyncio.create_task(served.post(query="?wait=5")) for _ in range(8)]
    await until(lambda: len(lane.waiting) == 8, "all of them are held")
    worker, batch, _ = in_hand[0]
    worker.finish(batch)
    batches = [await worker.claimed() for _ in sizes]
    assert [len(batch.head.jobs) for batch in batches] == sizes
    for batch in batches:
        worker.finish(batch)
    for worker, batch, _ in in_hand[1:]:
        worker.finish(batch)
    answers = await asyncio.gather(*waiting, *(posted for *_, posted in in_hand))
    assert {answer.status_code for answer in answers} == {200}


@pytest.mark.parametrize(("n_waiting", "sizes"), [(63, [63]), (130, [65, 65])], ids=["not many", "many"])
async def test_many_that_wait_while_little_is_out_travel_in_two_batches(
    serve: Serve, hand_worker: HandWorkers, n_waiting: int, sizes: list[int]
) -> None:
    worker = hand_worker(1)
    served = await serve(batch_hold_ms=1000, batches_ahead=1)
    lane = served.services.dispatcher.lane(worker.record.queue)
    posts = []
    for sent in (1, 2):
        posts.append(asyncio.create_task(served.post(query="?wait=5")))
        await until(lambda sent=sent: lane.backlog.sent_batches == sent, "it is sent")
    posts += [asyncio.create_task(served.post(query="?wait=5")) for _ in range(n_waiting)]
    await until(lambda: len(lane.waiting) == n_waiting, "all of them are held")
    found = []
    for _ in (*posts[:2], *sizes):
        batch = await worker.claimed()
        found.append(len(batch.head.jobs))
        worker.finish(batch)
    assert found == [1, 1, *sizes]
    assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}
