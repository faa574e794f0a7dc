"""Jobs after their acceptance: polled, waited for, cancelled, expired, gone."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
import redis

from app.ledger.ids import IdSigner
from app.redis import keys
from app.server_errors import JobNotCancellableError
from faults.proxy import Proxy
from tests.controller.conftest import HandWorker, Serve, serving, settings_for, until
from tests.pool_samples import RedisServer

HandWorkers = Callable[..., HandWorker]


async def test_a_job_is_queued_then_running_then_succeeded(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served, other = await serve(), await serve()
    url = (await served.post()).headers["location"]
    assert (await other.http.get(url)).json()["status"] == "queued"
    batch = await worker.claimed()
    assert (await other.http.get(url)).json()["status"] == "running"
    worker.finish(batch)
    for each in (served, other):
        job = (await each.http.get(url)).json()
        assert (job["status"], job["predictions"][0]["class"]) == ("succeeded", 7)


async def test_a_long_poll_returns_as_soon_as_the_outcome_is_there(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served, other = await serve(), await serve()
    url = (await served.post()).headers["location"]
    poll = asyncio.create_task(other.http.get(f"{url}?wait=4"))
    worker.finish(await worker.claimed())
    assert (await poll).json()["status"] == "succeeded"


async def test_a_long_poll_costs_redis_nothing_while_it_waits(
    serve: Serve, hand_worker: HandWorkers, redis_server: RedisServer, client: redis.Redis
) -> None:
    worker = hand_worker()
    async with serving(settings_for(redis_server.url)) as gone:  # it would look its own batches up
        job_id = (await gone.post()).json()["id"]
    poll = asyncio.create_task((await serve()).http.get(f"/results/{job_id}?wait=30"))
    key = keys.batch(job_id.partition(".")[0])
    await until(lambda: client.object("idletime", key) >= 2, "nobody reads the record", timeout_s=20)
    worker.finish(await worker.claimed())
    assert (await poll).json()["status"] == "succeeded"


async def test_a_long_poll_that_ends_first_tells_the_present_state(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve()
    url = (await served.post()).headers["location"]
    answer = await served.http.get(f"{url}?wait=0.05")
    assert (answer.status_code, answer.json()["status"]) == (200, "queued")


@pytest.mark.parametrize("job_id", ["x", "a.b", "A" * 32 + ".0", "%00"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_an_id_that_the_pool_never_gave_is_unknown(serve: Serve, method: str, job_id: str) -> None:
    served = await serve()
    assert (await served.http.request(method, f"/results/{job_id}")).status_code == 404


async def test_a_job_whose_retention_has_passed_is_gone_and_not_unknown(
    serve: Serve, client: redis.Redis
) -> None:
    served = await serve()
    secret = client.get(keys.SECRET)
    assert isinstance(secret, bytes)
    long_ago = IdSigner(secret).new_batch_id(1_700_000_000_000, 1)
    for method in ("GET", "DELETE"):
        answer = await served.http.request(method, f"/results/{long_ago}.0")
        assert (answer.status_code, answer.json()["code"]) == (410, "job_gone")


async def test_a_job_lost_with_redis_data_before_its_retention_is_unknown(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    hand_worker()
    served = await serve()
    job_id = (await served.post()).json()["id"]
    client.delete(keys.batch(job_id.split(".")[0]))
    assert (await served.http.get(f"/results/{job_id}")).status_code == 404


async def test_a_waiting_job_can_be_cancelled_and_a_worker_then_leaves_it_out(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    url = (await served.post()).headers["location"]
    for _ in range(2):
        answer = await served.http.delete(url)
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert (await served.http.get(url)).json()["status"] == "cancelled"
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"0"
    assert (await worker.claimed()).cancelled == {0}


async def test_a_running_or_finished_job_cannot_be_cancelled(serve: Serve, hand_worker: HandWorkers) -> None:
    worker = hand_worker()
    served = await serve()
    url = (await served.post()).headers["location"]
    batch = await worker.claimed()
    running = await served.http.delete(url)
    worker.finish(batch)
    finished = await served.http.delete(url)
    for answer, text in ((running, "is running"), (finished, "has its outcome")):
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_cancellable")
        assert text in answer.json()["detail"]


async def test_a_job_shown_as_expired_stays_expired_when_it_is_cancelled(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve(heartbeat_s=60)  # so that nobody closes the batch meanwhile
    url = (await served.post(query="?deadline=0.1")).headers["location"]
    shown = (await served.http.get(f"{url}?wait=1")).json()
    assert (shown["status"], shown["error"]["code"]) == ("expired", "job_expired")
    assert (await served.http.delete(url)).status_code == 409
    assert (await served.http.get(url)).json()["status"] == "expired"


async def test_a_job_that_nobody_takes_by_its_deadline_is_closed_as_expired(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    answer = await served.post(query="?deadline=0.05&wait=5")
    assert (answer.status_code, answer.json()["status"]) == (200, "expired")
    await until(lambda: client.hget(keys.BACKLOG, worker.record.queue) == b"0", "its batch is closed")
    assert client.exists(keys.pending(worker.record.queue), keys.deadlines(worker.record.queue)) == 0
    assert worker.claim() is None


async def test_a_batch_of_cancelled_jobs_leaves_the_indexes_at_its_deadline(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    url = (await served.post(query="?deadline=0.2")).headers["location"]
    await served.http.delete(url)
    await until(lambda: not client.exists(keys.pending(worker.record.queue)), "the batch is closed")
    assert (await served.http.get(url)).json()["status"] == "cancelled"
    assert client.hget(keys.BACKLOG, worker.record.queue) == b"0"


async def test_after_all_is_done_every_key_expires_but_those_that_are_meant_to_stay(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    await served.post(idempotency_key="abc")
    worker.finish(await worker.claimed())
    lasting = {name.decode() for name in client.scan_iter("*") if client.pttl(name) == -1}
    assert lasting == {keys.BACKLOG, keys.EPOCH, keys.NUMBERS, keys.WORKERS, keys.SECRET}


async def test_a_job_past_its_deadline_can_no_longer_be_cancelled_whatever_a_local_clock_says(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    hand_worker()
    served = await serve()
    job_id = (await served.post(query="?deadline=0.05")).json()["id"]
    ref = served.services.watcher.signer.parse_job_id(job_id)
    assert ref is not None
    view = await served.services.ledger.read(ref)
    assert view is not None
    await asyncio.sleep(0.06)
    with pytest.raises(JobNotCancellableError, match="deadline has passed"):
        await served.services.ledger.cancel(ref, view.head)


async def test_many_jobs_are_read_at_once_in_the_order_asked_each_as_it_is_read_alone(
    serve: Serve, hand_worker: HandWorkers, client: redis.Redis
) -> None:
    worker = hand_worker()
    served = await serve()
    ids = [job.json()["id"] for job in await asyncio.gather(*[served.post() for _ in range(3)])]
    batch = await worker.claimed()
    worker.finish(batch)
    secret = client.get(keys.SECRET)
    assert isinstance(secret, bytes)
    gone = f"{IdSigner(secret).new_batch_id(1_700_000_000_000, 1)}.0"
    wrong = f"{IdSigner(secret).new_batch_id(1_700_000_000_000, 1)}.0"
    client.set(keys.batch(wrong.partition(".")[0]), "not a record")
    asked = [ids[2], "none", gone, ids[0], wrong, ids[2], ids[1]]
    answer = await served.http.get("/results", params={"ids": ",".join(asked)})
    assert answer.status_code == 200
    for job_id, found in zip(asked, answer.json()["jobs"], strict=True):
        assert found == (await served.http.get(f"/results/{job_id}")).json()
    alone = await served.http.get("/results", params={"ids": ",".join([ids[0]] * 1000)})
    assert len(alone.json()["jobs"]) == 1000


async def test_a_thousand_jobs_are_read_in_one_round_trip_to_redis(
    serve: Serve, hand_worker: HandWorkers, redis_server: RedisServer, way: Proxy
) -> None:
    worker = hand_worker()
    patient = {"redis_timeout_s": 30.0, "heartbeat_s": 30.0}
    served = await serve(max_batch_jobs=20, batches_ahead=64, **patient)
    reader = await serve(redis_url=way.url, **patient)
    accepted = await asyncio.gather(*[served.post() for _ in range(1000)])
    assert {each.status_code for each in accepted} == {202}
    ids = [each.json()["id"] for each in accepted]
    batches = {job_id.partition(".")[0] for job_id in ids}
    finished = set()
    for _ in range(len(batches) // 2):
        batch = await worker.claimed()
        assert worker.finish(batch)
        finished.add(batch.batch_id)
    await reader.http.get(f"/results/{ids[0]}")  # its connection is open from now on
    sent = bytearray()

    def note(data: bytes) -> bool:
        sent.extend(data)
        return False

    way.hold_at(note)
    redis_server.process.send_signal(signal.SIGSTOP)
    try:
        reading = asyncio.create_task(reader.http.get("/results", params={"ids": ",".join(ids)}))
        await until(lambda: all(each.encode() in sent for each in batches), "all is asked before any answer")
    finally:
        redis_server.process.send_signal(signal.SIGCONT)
    found = (await reading).json()["jobs"]
    assert [(job["id"], job["status"]) for job in found] == [
        (job_id, "succeeded" if job_id.partition(".")[0] in finished else "queued") for job_id in ids
    ]


async def test_reading_many_jobs_waits_until_the_last_has_its_outcome(
    serve: Serve, hand_worker: HandWorkers
) -> None:
    worker = hand_worker()
    served, other = await serve(), await serve()
    first = (await served.post()).json()["id"]
    worker.finish(await worker.claimed())
    second = (await served.post()).json()["id"]
    query = f"/results?ids={first},none,{second}&wait="
    early = (await served.http.get(f"{query}0.05")).json()["jobs"]
    assert [each["status"] for each in early] == ["succeeded", 404, "queued"]
    poll = asyncio.create_task(other.http.get(f"{query}10"))
    worker.finish(await worker.claimed())
    assert [each["status"] for each in (await poll).json()["jobs"]] == ["succeeded", 404, "succeeded"]


@pytest.mark.parametrize("ids", ["", ",".join(["a"] * 1001)])
async def test_no_ids_or_too_many_are_refused(serve: Serve, ids: str) -> None:
    served = await serve()
    answer = await served.http.get("/results", params={"ids": ids})
    assert (answer.status_code, answer.json()["code"]) == (422, "parameter_invalid")
    assert "expected 1 to 1,000" in answer.json()["detail"]
