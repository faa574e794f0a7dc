"""`celery -A app.celery_app worker` would discard the messages of a version's queue: it refuses to start instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from app.celery_app import BATCH_TASK, create_celery
from app.redis import keys
from app.settings import Settings
from tests.pool_samples import RedisServer

QUEUE = keys.queue_name("Scikit", 1)
DEFAULT_QUEUE = "celery"
CELERY = ("-m", "celery", "-A", "app.celery_app")
EMBEDDED = "from app.celery_app import celery_app; "


@pytest.fixture
def waiting(redis_server: RedisServer, client: redis.Redis) -> dict[str, list[bytes]]:
    """A message on a version's queue and one on Celery's default queue, as they are stored."""
    celery = create_celery(Settings(redis_url=redis_server.url))
    for queue in (QUEUE, DEFAULT_QUEUE):
        celery.send_task(BATCH_TASK, task_id="B" * 32, queue=queue)
    celery.close()
    return stored(client)


def stored(client: redis.Redis) -> dict[str, list[bytes]]:
    return {queue: client.lrange(queue, 0, -1) for queue in (QUEUE, DEFAULT_QUEUE)}  # type: ignore[misc]


def run(redis_server: RedisServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        env=os.environ | {"REDIS_URL": redis_server.url},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((*CELERY, "worker", "-Q", QUEUE), id="a version's queue"),
        pytest.param((*CELERY, "worker", "-P", "threads", "--purge", "-l", "ERROR"), id="default queue"),
        pytest.param((*CELERY, "worker", "-B", "-P", "solo", "--detach", "--pidfile="), id="detached"),
        pytest.param(("-c", f"{EMBEDDED}celery_app.worker_main(['worker', '-Q', {QUEUE!r}])"), id="main"),
        pytest.param(
            ("-c", f"{EMBEDDED}celery_app.Worker(pool_cls='solo', queues={QUEUE!r}).start()"), id="embedded"
        ),
    ],
)
def test_a_plain_celery_worker_refuses_to_start_and_takes_no_message(
    arguments: tuple[str, ...],
    redis_server: RedisServer,
    client: redis.Redis,
    waiting: dict[str, list[bytes]],
) -> None:
    ended = run(redis_server, *arguments)
    assert ended.returncode == 1
    [line] = (ended.stdout + ended.stderr).splitlines()
    assert "start `modelyard worker` with MODEL_NAME and MODEL_VERSION instead" in line
    assert stored(client) == waiting
    assert all(waiting.values())


def test_celery_multi_says_that_its_worker_did_not_start(
    redis_server: RedisServer, client: redis.Redis, waiting: dict[str, list[bytes]], tmp_path: Path
) -> None:
    files = (f"--pidfile={tmp_path}/%n.pid", f"--logfile={tmp_path}/%n.log")
    ended = run(
        redis_server, "-m", "celery", "multi", "start", "1", "-A", "app.celery_app", "-Q", QUEUE, *files
    )
    assert ended.stdout.count("FAILED") == 1
    assert ended.stderr.count("modelyard worker") == 1
    assert not list(tmp_path.glob("*.pid"))
    assert stored(client) == waiting
