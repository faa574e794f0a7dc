"""`python -m workers.process.health`, the check of the workers' containers, beside a heartbeat on a real Redis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from app.clock import PoolClock
from app.server_errors import ConfigurationError
from tests.pool_samples import RedisServer, record
from workers.process.heartbeat import Heartbeat

StartHeartbeat = Callable[..., Heartbeat]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "worker.ready"


@pytest.fixture
def start_heartbeat(redis_server: RedisServer, file: Path) -> Iterator[StartHeartbeat]:
    """Starts a worker's heartbeat, which ends with the test."""
    made: list[Heartbeat] = []
    with redis.Redis.from_url(redis_server.url) as client:

        def start(heartbeat_s: float, ready_file: Path = file) -> Heartbeat:
            heartbeat = Heartbeat(
                client, record(state="starting"), PoolClock(), heartbeat_s, ready_file=ready_file
            )
            heartbeat.start()
            made.append(heartbeat)
            return heartbeat

        yield start
        for heartbeat in made:
            heartbeat.close()


def check(file: Path | str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "workers.process.health"],
        env={**os.environ, "MODELYARD_READY_FILE": str(file)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stdout
    return done.returncode, done.stderr


def test_a_worker_is_healthy_while_it_is_ready_and_not_before_or_after(
    start_heartbeat: StartHeartbeat, file: Path, wait_until: Callable[..., None]
) -> None:
    heartbeat = start_heartbeat(60)
    assert check(file)[0] == 1
    heartbeat.set_state("ready")
    wait_until(lambda: check(file) == (0, ""), what="it is healthy")
    heartbeat.set_state("draining")
    wait_until(lambda: check(file)[0] == 1, what="one that drains is not")
    heartbeat.set_state("ready")
    wait_until(lambda: check(file)[0] == 0, what="it is healthy again")
    heartbeat.close()
    assert check(file)[0] == 1


def test_a_worker_whose_record_redis_no_longer_takes_is_unhealthy_once_it_has_expired(
    start_heartbeat: StartHeartbeat, redis_server: RedisServer, file: Path, wait_until: Callable[..., None]
) -> None:
    heartbeat = start_heartbeat(0.1)
    heartbeat.set_state("ready")
    wait_until(lambda: check(file)[0] == 0, what="it is healthy")
    with redis.Redis.from_url(redis_server.url) as client:
        client.client_pause(3000)
        wait_until(lambda: "its last record expired" in check(file)[1], what="it is not")
        client.client_unpause()
    wait_until(lambda: check(file)[0] == 0, what="it is healthy again")


def test_what_a_killed_worker_left_behind_does_not_count_for_the_next_one(
    start_heartbeat: StartHeartbeat, file: Path
) -> None:
    file.touch()
    os.utime(file, (2**32, 2**32))
    assert check(file)[0] == 0
    start_heartbeat(60)
    assert check(file)[0] == 1


def test_a_file_that_cannot_be_written_stops_the_worker_with_a_line(
    start_heartbeat: StartHeartbeat, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"MODELYARD_READY_FILE=.*nowhere.* cannot be written"):
        start_heartbeat(60, tmp_path / "nowhere" / "ready")


def test_a_check_without_a_file_says_what_to_set() -> None:
    assert check("") == (
        1,
        "MODELYARD_READY_FILE is not set; set it to the same path for the worker and for this check\n",
    )


def test_the_check_imports_nothing_beside_the_standard_library() -> None:
    heavy = "{'app', 'celery', 'msgspec', 'mlflow', 'numpy', 'pydantic', 'redis', 'torch'}"
    code = f"import sys, workers.process.health; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
