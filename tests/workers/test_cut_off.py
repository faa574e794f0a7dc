"""A worker whose connections were cut off without a word: the next batch does not wait for a timeout on one of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.clock import PoolClock
from app.keys import queue_name
from app.ledger import ControllerLedger, WorkerLedger, connect, connect_async
from app.settings import Settings
from faults.proxy import Proxy
from tests.conftest import RedisServer
from tests.pool_samples import MODEL, new_batch, record
from workers.beacon import Beacon

LONG_S = 60.0  # longer than the tests may take: who waits on a dead connection is found out


@pytest.fixture
def way(redis_server: RedisServer, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(redis_server.socket, tmp_path / "way.sock") as proxy:
        yield proxy


@pytest.mark.timeout(30)
async def test_after_a_failed_heartbeat_the_next_claim_is_made_on_a_new_connection(
    redis_server: RedisServer, way: Proxy
) -> None:
    settings = Settings(redis_url=way.url, redis_timeout_s=LONG_S)
    jobs = WorkerLedger(connect(settings, single_connection_client=True), "host-1", queue_name(MODEL, 1), 100)
    assert jobs.claim(new_batch().batch_id) is None  # it is connected
    is_silent = threading.Event()

    def on_silence() -> None:
        jobs.suspect_connection()
        is_silent.set()

    beacon = Beacon(connect(settings, timeout_s=0.1), record(), PoolClock(), 0.1, on_silence=on_silence)
    beacon.start()
    way.go_dead()
    assert is_silent.wait(10)
    way.revive()
    client = connect_async(Settings(redis_url=redis_server.url))
    batch = new_batch()
    await ControllerLedger(client, 100).accept(batch)
    await client.aclose()
    claimed = jobs.claim(batch.batch_id)
    assert claimed
    assert claimed.batch_id == batch.batch_id
    beacon.close()
