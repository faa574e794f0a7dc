"""`python -m workers` as a process: serves its queue, drains on SIGTERM, and takes nothing when it cannot serve."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from app.ledger import wire
from app.redis import keys
from app.worker_record import decode_record
from tests.pool_samples import RedisServer
from tests.workers.worker_processes import (
    LIGHT,
    LIGHT_MODEL,
    LIGHT_QUEUE,
    QUEUE,
    Start,
    accept,
    ready_pids,
    records,
    runs,
)

WaitUntil = Callable[..., None]


@pytest.fixture
def silent_registry() -> Iterator[tuple[str, socket.socket]]:
    """Tracking URI of a server that never answers, and what accepts its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


def test_a_worker_serves_its_queue_under_the_number_asked_for_and_drains_on_sigterm(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil, measured: dict[str, str]
) -> None:
    batch_id = accept(redis_server.url)
    worker = start_worker("champion", WORKER="5", **measured)
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: client.hget(keys.batch(batch_id), "out"), timeout_s=60, what="the batch is run")
        stored = client.hget(keys.batch(batch_id), "out")
        assert isinstance(stored, bytes)
        outcome = wire.decode_outcome(stored)
        assert [(job.status, job.classes) for job in outcome.jobs] == [("succeeded", [3]), ("succeeded", [8])]
        wait_until(lambda: ready_pids(client), timeout_s=10, what="the worker is published as ready")
        record = client.get(keys.worker(outcome.worker_id))
        assert isinstance(record, bytes)
        published = decode_record(record)
        assert (published.worker, published.model_version, published.val_accuracy) == (5, 1, 0.75)
        assert (published.state, published.main_pid) == ("ready", worker.pid)
        assert client.hget(keys.NUMBERS, QUEUE) == b"5"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert client.get(keys.worker(outcome.worker_id)) is None
        assert client.zcard(keys.WORKERS) == 0


def test_a_worker_whose_serving_process_is_killed_serves_again_without_the_registry(
    start_worker: Start, redis_server: RedisServer, registry: str, wait_until: WaitUntil, tmp_path: Path
) -> None:
    database = tmp_path / "mlruns.db"
    shutil.copy(registry.removeprefix("sqlite:///"), database)
    worker = start_worker("1", **LIGHT, MLFLOW_TRACKING_URI=f"sqlite:///{database}", TMPDIR=str(tmp_path))
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ready_pids(client), timeout_s=60, what="the worker is ready")
        [first] = ready_pids(client)
        database.unlink()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: ready_pids(client) - {first}, timeout_s=60, what="another process serves")
        batch_id = accept(redis_server.url, LIGHT_MODEL)
        wait_until(lambda: client.hget(keys.batch(batch_id), "out"), what="the batch is run")
        assert worker.poll() is None
        assert {record.main_pid for record in records(client)} == {worker.pid}
        assert list(tmp_path.glob("modelyard-*"))  # where a registry's files would be
        worker.send_signal(signal.SIGUSR2)
        assert worker.wait(30) == 0  # its queue is empty
    _, errors = worker.communicate()
    assert errors.count("was ended by signal 9 (Killed); starting another") == 1
    assert not list(tmp_path.glob("modelyard-*"))


def test_an_onnx_worker_loads_no_pytorch_and_takes_its_serving_process_along_when_killed(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    worker = start_worker("1", **LIGHT, ALLOW_PICKLE_MODELS="false")
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ready_pids(client), timeout_s=60, what="the worker is ready")
        [serving] = ready_pids(client)
        libraries = Path(f"/proc/{serving}/maps").read_text()
        assert "onnxruntime" in libraries
        assert "libtorch" not in libraries
        worker.kill()
        wait_until(lambda: not runs(serving), what="the process that served is gone")


def test_a_worker_removes_the_folders_that_killed_workers_left_and_no_others(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil, tmp_path: Path
) -> None:
    def started() -> tuple[subprocess.Popen[str], Path]:
        n_before, before = len(ready_pids(client)), set(tmp_path.glob("modelyard-*"))
        worker = start_worker("1", **LIGHT, TMPDIR=str(tmp_path))
        wait_until(lambda: len(ready_pids(client)) > n_before, timeout_s=60, what="a worker is ready")
        [folder] = set(tmp_path.glob("modelyard-*")) - before
        return worker, folder

    with redis.Redis.from_url(redis_server.url) as client:
        killed, left = started()
        killed.kill()
        killed.wait(30)
        wait_until(lambda: not ready_pids(client), timeout_s=60, what="its record has expired")
        _, folder = started()
        assert not left.exists()
        _, other = started()
        assert folder.exists()
        assert other.exists()


def test_ctrl_c_drains_a_worker_and_a_second_one_would_end_it(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    worker = start_worker("1", **LIGHT)
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ready_pids(client), timeout_s=60, what="the worker is ready")
        os.killpg(worker.pid, signal.SIGINT)  # a terminal tells all of a group
        said, _ = worker.communicate(timeout=30)
        assert said.count("Warm shutdown") == 1
        assert "will terminate all running tasks" not in said  # what it says to the second
        assert not client.exists(keys.WORKERS)


def test_a_worker_that_cannot_load_its_model_takes_nothing_off_the_queue(
    start_worker: Start, redis_server: RedisServer
) -> None:
    batch_id = accept(redis_server.url, LIGHT_MODEL)
    with redis.Redis.from_url(redis_server.url) as client:
        client.rename(LIGHT_QUEUE, keys.queue_name(LIGHT_MODEL, 2))
        worker = start_worker("2", **LIGHT)
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 1
        assert "fails on zeros" in errors.splitlines()[-1]
        assert errors.count("fails on zeros") == 1
        assert "Traceback" not in errors
        assert client.llen(keys.queue_name(LIGHT_MODEL, 2)) == 1
        assert client.hget(keys.batch(batch_id), "by") is None
        assert client.zcard(keys.WORKERS) == 0


def test_a_worker_without_redis_exits_with_one_clear_line(start_worker: Start) -> None:
    worker = start_worker("1", REDIS_URL="unix:///nowhere/redis.sock")
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "Redis does not answer" in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_version_that_does_not_exist_ends_a_worker_with_one_line_that_says_what_does(
    start_worker: Start,
) -> None:
    worker = start_worker("99")
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "has no Scikit / 99: it has version 1, 2, 3, 4; set MODEL_NAME" in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.parametrize(("how", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_worker_that_is_stopped_while_it_reads_the_registry_leaves_no_process_behind(
    start_worker: Start,
    silent_registry: tuple[str, socket.socket],
    how: signal.Signals,
    status: int,
    tmp_path: Path,
) -> None:
    uri, server = silent_registry
    worker = start_worker("1", MLFLOW_TRACKING_URI=uri, TMPDIR=str(tmp_path))
    connection, _ = server.accept()
    with connection:
        assert list(tmp_path.glob("modelyard-*"))
        worker.send_signal(how)
        assert worker.wait(30) == status
        connection.settimeout(30)
        while connection.recv(65536):  # its request, and then the end of the process that sent it
            pass
    if how is signal.SIGTERM:
        assert not list(tmp_path.glob("modelyard-*"))
