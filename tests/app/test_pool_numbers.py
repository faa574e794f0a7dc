"""Worker numbers in a real Redis: stable, unique, and given without gaps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from app.redis import keys
from app.server_errors import WorkerNumberTakenError
from app.worker_record import assign_number

QUEUES = [keys.queue_name("M", version) for version in range(1, 9)]


def test_queues_get_the_next_free_number_and_keep_it(client: redis.Redis) -> None:
    assert [assign_number(client, queue, None) for queue in QUEUES[:3]] == [1, 2, 3]
    assert [assign_number(client, queue, None) for queue in QUEUES[:3]] == [1, 2, 3]


def test_a_number_asked_for_is_given_and_the_gap_before_it_is_filled_next(client: redis.Redis) -> None:
    assert assign_number(client, QUEUES[0], 3) == 3
    assert [assign_number(client, queue, None) for queue in QUEUES[1:4]] == [1, 2, 4]


def test_a_number_asked_for_replaces_the_queues_own(client: redis.Redis) -> None:
    assign_number(client, QUEUES[0], None)
    assert assign_number(client, QUEUES[0], 7) == 7
    assert assign_number(client, QUEUES[0], None) == 7
    assert assign_number(client, QUEUES[1], None) == 1


def test_a_number_that_another_queue_has_is_refused_and_says_whose_it_is(client: redis.Redis) -> None:
    assign_number(client, QUEUES[0], 2)
    with pytest.raises(WorkerNumberTakenError, match=f"2 belongs to {QUEUES[0]}"):
        assign_number(client, QUEUES[1], 2)
    assert assign_number(client, QUEUES[0], 2) == 2


def test_workers_that_start_together_get_different_numbers(client: redis.Redis) -> None:
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda queue: assign_number(client, queue, None), QUEUES))
    assert sorted(given) == list(range(1, 9))
