"""The script that finishes a batch takes the next one: what it takes, what it leaves, and what a lost answer costs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import msgspec
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from app.ledger import wire
from app.ledger.worker_ledger import ClaimedBatch, WorkerLedger
from app.redis import keys
from app.server_errors import LedgerUnavailableError, NewerWireError, WireError
from faults.proxy import Proxy
from tests.pool_samples import accept_now, head, new_batch, outcome

QUEUE = head().queue
RETENTION_S = 100.0


class Bench:
    """A queue with batches on it, and a worker that has claimed the first of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        retry = Retry(NoBackoff(), 3)
        self.client = redis.Redis.from_url(url, retry=retry, retry_on_error=[RedisConnectionError])
        self.worker = WorkerLedger(self.client, "host-1", QUEUE, RETENTION_S)

    def accept(self, n_batches: int) -> list[str]:
        made = [new_batch() for _ in range(n_batches)]
        message = b'{"properties": {"correlation_id": "%s"}}'
        accept_now(self.url, *[replace(each, message=message % each.batch_id.encode()) for each in made])
        return [each.batch_id for each in made]

    def claim_first(self) -> ClaimedBatch:
        """As Celery's consumer does: the message first, then the batch."""
        message = self.client.rpop(QUEUE)
        assert isinstance(message, bytes)
        claimed = self.worker.claim(message.split(b'"')[-2].decode())
        assert claimed
        return claimed

    def finish(self, claimed: ClaimedBatch) -> bool:
        return self.worker.finish(claimed, outcome(), take=True)

    def has_outcome(self, batch_id: str) -> bool:
        return self.client.hexists(keys.batch(batch_id), "out")

    def owner(self, batch_id: str) -> bytes | None:
        owner = self.client.hget(keys.running(QUEUE), batch_id)
        assert owner is None or isinstance(owner, bytes)
        return owner


@pytest.fixture
def bench(way: Proxy) -> Iterator[Bench]:
    made = Bench(way.url)
    yield made
    made.client.close()


def test_the_end_of_a_batch_takes_the_next_one_with_its_message(bench: Bench) -> None:
    first, second, third = bench.accept(3)
    assert bench.finish(bench.claim_first())
    assert bench.has_outcome(first)
    assert (bench.worker.taken, bench.owner(second), bench.owner(third)) == (second, b"host-1", None)
    assert bench.client.llen(QUEUE) == 1
    claimed = bench.worker.claim(second)
    assert claimed
    assert (claimed.batch_id, claimed.attempts, bench.worker.taken) == (second, 1, None)


def test_the_end_of_a_batch_takes_nothing_unless_it_is_to(bench: Bench) -> None:
    _, second = bench.accept(2)
    assert bench.worker.finish(bench.claim_first(), outcome())
    assert (bench.worker.taken, bench.owner(second), bench.client.llen(QUEUE)) == (None, None, 1)


def test_an_outcome_that_comes_too_late_takes_nothing(bench: Bench) -> None:
    first, _ = bench.accept(2)
    claimed = bench.claim_first()
    bench.client.hset(keys.running(QUEUE), first, "heir")
    assert not bench.finish(claimed)
    assert (bench.worker.taken, bench.client.llen(QUEUE)) == (None, 1)


@pytest.mark.parametrize(
    "message",
    [b"", b"\xff" * 300, b"[" * 100_000, b'{"correlation_id": "short"}', b'{"correlation_id": null}'],
)
def test_a_message_that_names_no_batch_is_left_to_celerys_consumer(bench: Bench, message: bytes) -> None:
    first, _ = bench.accept(2)
    claimed = bench.claim_first()
    bench.client.rpush(QUEUE, message)
    assert bench.finish(claimed)
    assert bench.has_outcome(first)
    assert (bench.worker.taken, bench.client.lindex(QUEUE, -1)) == (None, message)
    bench.worker.take(1)
    assert bench.worker.taken is None
    assert bench.client.lindex(QUEUE, -1) == message


def test_a_message_of_a_batch_that_is_done_or_anothers_is_left_to_celerys_consumer(bench: Bench) -> None:
    first, second = bench.accept(2)
    bench.client.rpush(QUEUE, b'"correlation_id": "%s"' % first.encode())
    claimed = bench.claim_first()
    assert bench.finish(claimed)
    assert (bench.worker.taken, bench.client.llen(QUEUE)) == (None, 2)
    bench.client.rpop(QUEUE)
    WorkerLedger(bench.client, "other", QUEUE, RETENTION_S).claim(second)
    bench.worker.take()
    assert (bench.worker.taken, bench.owner(second), bench.client.llen(QUEUE)) == (None, b"other", 1)


@pytest.mark.parametrize("damage", ["attempts", "kind"])
def test_a_damaged_record_on_the_queue_harms_no_outcome_and_is_closed_when_claimed(
    bench: Bench, damage: str
) -> None:
    first, second = bench.accept(2)
    claimed = bench.claim_first()
    if damage == "attempts":
        bench.client.hset(keys.batch(second), "attempts", "nonsense")
    else:
        bench.client.set(keys.batch(second), "text")
    assert bench.finish(claimed)
    assert bench.has_outcome(first)
    assert (bench.worker.taken, bench.client.llen(QUEUE)) == (None, 1)
    with pytest.raises(WireError):
        bench.worker.claim(second)
    assert bench.has_outcome(second)


def test_what_was_taken_and_cannot_be_read_is_closed(bench: Bench) -> None:
    _, second = bench.accept(2)
    claimed = bench.claim_first()
    bench.client.hset(keys.batch(second), "head", b"\xc1")
    assert bench.finish(claimed)
    with pytest.raises(WireError):
        bench.worker.claim(second)
    assert (bench.has_outcome(second), bench.owner(second)) == (True, None)


def test_what_was_taken_and_is_of_a_newer_release_is_let_go(bench: Bench) -> None:
    _, second = bench.accept(2)
    claimed = bench.claim_first()
    newer = wire.encode(msgspec.structs.replace(head(), schema_version=wire.PIECES_VERSION + 1))
    bench.client.hset(keys.batch(second), "head", newer)
    assert bench.finish(claimed)
    with pytest.raises(NewerWireError):
        bench.worker.claim(second)
    assert (bench.has_outcome(second), bench.owner(second)) == (False, None)


def test_a_lost_answer_loses_neither_the_outcome_nor_the_batch_that_was_taken(
    bench: Bench, way: Proxy
) -> None:
    first, second, _ = bench.accept(3)
    claimed = bench.claim_first()
    way.cut_at(lambda _: True)
    assert bench.finish(claimed)
    assert bench.has_outcome(first)
    assert (bench.worker.taken, bench.client.llen(QUEUE)) == (second, 1)
    taken = bench.worker.claim(second)
    assert taken
    assert taken.attempts == 1


def test_a_lost_answer_to_an_outcome_that_took_nothing_is_no_lost_claim(bench: Bench, way: Proxy) -> None:
    bench.accept(1)
    claimed = bench.claim_first()
    way.cut_at(lambda _: True)
    assert bench.finish(claimed)
    assert bench.worker.taken is None


@pytest.mark.parametrize("limit_s", [0, 1])
def test_a_lost_answer_to_a_take_takes_no_second_batch(bench: Bench, way: Proxy, limit_s: float) -> None:
    bench.worker.take()  # it is connected, and finds nothing
    first, _ = bench.accept(2)
    way.cut_at(lambda _: True)
    bench.worker.take(limit_s)
    assert (bench.worker.taken, bench.client.llen(QUEUE)) == (first, 1)


def test_a_batch_that_comes_while_the_worker_waits_is_taken_at_once(bench: Bench) -> None:
    bench.worker.take(0.001)
    assert bench.worker.taken is None
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(bench.worker.take, 30)
        with redis.Redis.from_url(bench.url) as client:
            while not client.info("clients")["blocked_clients"]:
                time.sleep(0.01)
        first, second = bench.accept(2)
        waiting.result(10)
    assert (bench.worker.taken, bench.owner(first), bench.owner(second)) == (first, b"host-1", None)
    assert bench.client.llen(QUEUE) == 1


def test_a_wait_loads_its_script_again_where_redis_has_forgotten_it(bench: Bench) -> None:
    bench.worker.take(0.001)
    bench.client.script_flush()
    first, _ = bench.accept(2)
    bench.worker.take(30)
    assert (bench.worker.taken, bench.client.llen(QUEUE)) == (first, 1)


def test_scripts_are_loaded_again_by_a_redis_that_has_forgotten_them(bench: Bench) -> None:
    first, second = bench.accept(2)
    claimed = bench.claim_first()
    bench.client.script_flush()
    assert bench.finish(claimed)
    assert (bench.has_outcome(first), bench.worker.taken) == (True, second)


def test_a_redis_that_is_not_there_is_told_as_such() -> None:
    with redis.Redis.from_url("unix:///nowhere/redis.sock") as client:
        worker = WorkerLedger(client, "host-1", QUEUE, RETENTION_S)
        for ask in (worker.take, lambda: worker.take(1), lambda: worker.claim("B" * 32)):
            with pytest.raises(LedgerUnavailableError):
                ask()
