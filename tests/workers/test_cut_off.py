"""A worker whose connections were cut off without a word: the next batch does not wait for a timeout on one of them."""

from __future__ import annotations

from collections.abc import Callable

import kombu
import pytest

from app.celery_app import create_celery
from app.clock import PoolClock
from app.ledger.worker_ledger import WorkerLedger
from app.redis.client import connect, connect_async
from app.redis.keys import queue_name
from app.server_errors import LedgerUnavailableError
from app.settings import Settings
from faults.proxy import Proxy
from tests.conftest import RedisServer, WaitUntil
from tests.pool_samples import MODEL, accept, new_batch, record
from workers.consumer import transport
from workers.process.heartbeat import Heartbeat

LONG_S = 60.0  # longer than the tests may take: who waits on a dead connection is found out


def worker_connection(url: str, failed_heartbeats: Callable[[], int]) -> kombu.Connection:
    """A connection as a worker's Celery makes it."""
    celery = create_celery(Settings(redis_url=url, redis_timeout_s=LONG_S))
    observer = transport.Observer(queue_name(MODEL, 1), lambda *_: None, lambda: None, failed_heartbeats)
    transport.use(celery, observer)
    return celery.connection_for_read()


def send_event(connection: kombu.Connection) -> None:
    exchange = kombu.Exchange("celeryev", "fanout")
    connection.Producer().publish({"type": "an event"}, exchange=exchange)


@pytest.mark.timeout(30)
async def test_after_a_failed_heartbeat_the_next_claim_is_made_on_a_new_connection(
    redis_server: RedisServer, way: Proxy, wait_until: WaitUntil
) -> None:
    settings = Settings(redis_url=way.url, redis_timeout_s=LONG_S)
    heartbeat = Heartbeat(connect(settings, timeout_s=0.1), record(), PoolClock(), 0.1)
    jobs = WorkerLedger(
        connect(settings, single_connection_client=True),
        "host-1",
        queue_name(MODEL, 1),
        100,
        failed_heartbeats=heartbeat.failed_heartbeats,
    )
    assert jobs.claim(new_batch().batch_id) is None  # it is connected
    heartbeat.start()
    way.go_dead()
    wait_until(heartbeat.failed_heartbeats, what="a heartbeat fails")
    way.revive()
    client = connect_async(Settings(redis_url=redis_server.url))
    batch = new_batch()
    await accept(client, batch)
    await client.aclose()
    claimed = jobs.claim(batch.batch_id)
    assert claimed
    assert claimed.batch_id == batch.batch_id
    heartbeat.close()


@pytest.mark.timeout(30)
def test_a_worker_that_waits_for_a_batch_soon_finds_out_that_it_is_cut_off(
    redis_server: RedisServer, way: Proxy
) -> None:
    settings = Settings(redis_url=way.url, redis_timeout_s=LONG_S)
    jobs = WorkerLedger(connect(settings), "host-1", queue_name(MODEL, 1), 100, failed_heartbeats=lambda: 0)
    jobs.take(0.01)  # it is connected
    way.go_dead()
    with pytest.raises(LedgerUnavailableError):
        jobs.take(0.01)
    way.revive()
    jobs.take(0.01)


@pytest.mark.timeout(30)
def test_after_a_failed_heartbeat_events_go_over_a_new_connection(way: Proxy) -> None:
    failed_heartbeats = 0
    with worker_connection(way.url, lambda: failed_heartbeats) as connection:
        send_event(connection)  # it is connected
        way.go_dead()
        way.revive()
        failed_heartbeats += 1
        send_event(connection)


@pytest.mark.timeout(30)
def test_after_a_failed_heartbeat_work_is_asked_for_on_a_new_connection_though_an_event_was_sent_first(
    redis_server: RedisServer, way: Proxy
) -> None:
    failed_heartbeats = 0
    heard: list[str] = []
    with (
        kombu.Connection(f"redis+socket://{redis_server.socket}").SimpleQueue("wake-ups") as queue,
        worker_connection(way.url, lambda: failed_heartbeats) as connection,
        connection.Consumer(
            kombu.Queue("wake-ups"), on_message=lambda message: heard.append(message.payload), no_ack=True
        ),
    ):
        queue.put("first")
        connection.drain_events(timeout=5)
        way.go_dead()
        way.revive()
        failed_heartbeats += 1
        send_event(connection)
        queue.put("second")
        connection.drain_events(timeout=5)
    assert heard == ["first", "second"]
