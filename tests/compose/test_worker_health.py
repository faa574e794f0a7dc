"""`python -m workers.health`, the check of the workers' containers, against worker records in a real Redis."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis

from app.pool import WorkerState
from tests.pool_samples import RedisServer, publish, record

HOST = socket.gethostname()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url) as connection:
        yield connection


def publish_worker(client: redis.Redis, state: WorkerState, host: str = HOST) -> None:
    publish(client, record(7, worker_id=f"{host}-1-{state}", worker=4, host=host, state=state))


def check(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "workers.health"]
    return subprocess.run(
        command, env={**os.environ, "REDIS_URL": url}, capture_output=True, text=True, check=False
    )


def test_a_ready_worker_on_this_host_is_healthy(redis_server: RedisServer, client: redis.Redis) -> None:
    publish_worker(client, "ready")
    publish_worker(client, "starting")
    done = check(redis_server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "worker 4 serves MNIST_PyTorch_Model / 7\n"


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_a_worker_that_takes_no_jobs_is_unhealthy(
    redis_server: RedisServer, client: redis.Redis, state: WorkerState
) -> None:
    publish_worker(client, state)
    done = check(redis_server.url)
    assert (done.returncode, done.stderr) == (1, f"no worker is ready on {HOST}: {state}\n")


def test_a_worker_on_another_host_does_not_count(redis_server: RedisServer, client: redis.Redis) -> None:
    publish_worker(client, "ready", "elsewhere")
    publish_worker(client, "ready", f"{HOST}-too")
    assert "no record" in check(redis_server.url).stderr


def test_redis_away_is_one_line_and_unhealthy() -> None:
    done = check("redis://127.0.0.1:1/0")
    assert done.returncode == 1
    assert done.stderr.startswith("Redis does not answer")
    assert done.stderr.count("\n") == 1


def test_the_check_loads_neither_celery_nor_a_model_library() -> None:
    heavy = "{'celery', 'torch', 'mlflow', 'numpy'}"
    code = f"import sys, workers.health; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
