"""A queue is one model's: a worker that would serve another one under the same name and version does not start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from app.clock import PoolClock
from app.redis import keys
from app.server_errors import QueueTakenError
from app.worker_record import decode_record
from tests.pool_samples import RedisServer, publish, record
from workers.process.heartbeat import Heartbeat

WaitUntil = Callable[..., None]


def heartbeat(client: redis.Redis, worker_id: str, heartbeat_s: float = 60, **fields: Any) -> Heartbeat:
    return Heartbeat(client, record(worker_id=worker_id, **fields), PoolClock(), heartbeat_s)


def test_a_worker_of_another_model_does_not_start_and_both_are_named(client: redis.Redis) -> None:
    first = heartbeat(client, "a", run_id="r1", model_id="m-1", registry="sqlite:////one.db", host="alpha")
    first.start()
    others: list[dict[str, Any]] = [{"run_id": "r1", "model_id": "m-2"}, {"run_id": "r2", "model_id": "m-1"}]
    for other in others:
        second = heartbeat(client, "b", registry="sqlite:////two.db", host="beta", **other)
        with pytest.raises(QueueTakenError) as raised:
            second.start()
        for each in (
            "m-1, run r1 of sqlite:////one.db on alpha",
            "sqlite:////two.db on beta",
            other["model_id"],
        ):
            assert each in raised.value.detail
        assert client.exists(keys.worker("b")) == 0
    replica = heartbeat(client, "c", run_id="r1", model_id="m-1", registry="http://elsewhere", host="gamma")
    replica.start()
    for served in (first, replica):
        served.close()
    last = heartbeat(client, "d", run_id="r2", model_id="m-2")
    last.start()
    last.close()


def test_records_of_older_releases_are_compared_by_their_run(client: redis.Redis) -> None:
    publish(client, record(worker_id="old", run_id="r1"))
    same = heartbeat(client, "a", run_id="r1", model_id="m-1")
    same.start()
    with pytest.raises(QueueTakenError):
        heartbeat(client, "b", run_id="r2", model_id="m-1").start()
    same.close()


def test_of_two_models_that_start_at_once_one_is_served(client: redis.Redis) -> None:
    for _ in range(20):
        heartbeats = [heartbeat(client, name, run_id=name, model_id=name) for name in ("a", "b")]
        both = threading.Barrier(2)
        refused: list[str] = []

        def start(each: Heartbeat, both: threading.Barrier = both, refused: list[str] = refused) -> None:
            both.wait()
            try:
                each.start()
            except QueueTakenError as error:
                refused.append(error.detail)

        threads = [threading.Thread(target=start, args=[each]) for each in heartbeats]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 1
        for each in heartbeats:
            each.close()


def test_a_worker_whose_queue_was_taken_while_it_was_away_ends(
    client: redis.Redis, wait_until: WaitUntil
) -> None:
    ended = threading.Event()
    away = Heartbeat(client, record(worker_id="a", run_id="r1"), PoolClock(), 0.05, on_stall=ended.set)
    away.start()
    publish(client, record(worker_id="b", run_id="r2"))
    client.delete(keys.worker("a"))  # as it expires while the process is stopped
    assert ended.wait(10)
    assert client.exists(keys.worker("a")) == 0
    away.close()


def test_a_process_that_would_serve_another_model_ends_with_one_line(
    registry: str, redis_server: RedisServer, client: redis.Redis
) -> None:
    publish(client, record(model_name="Light", run_id="other", model_id="m-other", host="elsewhere"))
    variables = {
        "REDIS_URL": redis_server.url,
        "MLFLOW_TRACKING_URI": registry,
        "MODEL_NAME": "Light",
        "MODEL_VERSION": "1",
        "ALLOW_PICKLE_MODELS": "true",
    }
    done = subprocess.run(
        [sys.executable, "-m", "workers"],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "Light / 1 is served by m-other, run other" in last
    assert f"of {registry} on" in last
    assert "Traceback" not in done.stderr
    (data,) = [client.get(each) for each in client.scan_iter(keys.worker("*"))]
    assert isinstance(data, bytes)
    assert decode_record(data).run_id == "other"
