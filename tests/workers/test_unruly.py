"""Models that end or change their process: the worker serves on, or says why it does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import RedisServer
from tests.controller.conftest import Served, serving, settings_for, until
from tests.workers import unruly_model as model
from tests.workers.worker_processes import Start, ready_pids

HEARTBEAT_S = 0.2


async def outcome_of(served: Served, behaviour: int) -> dict[str, Any]:
    """What becomes of a job that makes the model behave so; it is posted once a worker is ready."""
    give_up_at = time.monotonic() + 60
    while (posted := await served.post({"data": [behaviour, 1]}, "?wait=30")).status_code == 503:
        assert time.monotonic() < give_up_at, posted.text
        await asyncio.sleep(HEARTBEAT_S)
    assert posted.status_code == 200, posted.text
    body: dict[str, Any] = posted.json()
    return body


def is_replaced(client: redis.Redis, pids: set[int]) -> bool:
    """Whether other processes than these are ready."""
    ready = ready_pids(client)
    return bool(ready) and ready.isdisjoint(pids)


@pytest.mark.timeout(180)
async def test_whatever_a_model_does_to_end_its_worker_the_worker_is_back_and_the_job_comes_to_its_outcome(
    start_worker: Start, redis_server: RedisServer
) -> None:
    worker = start_worker("1", MODEL_NAME="Unruly", MODELYARD_LOG_FORMAT="json")
    with redis.Redis.from_url(redis_server.url) as client:
        await until(lambda: ready_pids(client), "the worker is ready", timeout_s=60)
        async with serving(settings_for(redis_server.url, heartbeat_s=HEARTBEAT_S)) as served:
            pids = ready_pids(client)
            failed = [await outcome_of(served, behaviour) for behaviour in (model.EXITS, model.INTERRUPTS)]
            assert [job["error"]["code"] for job in failed] == ["model_failed"] * 2
            assert (await outcome_of(served, model.FORKS))["status"] == "succeeded"
            assert (await outcome_of(served, model.WELL))["status"] == "succeeded"
            assert ready_pids(client) == pids
            for behaviour in (model.TERMINATES, model.CLOSES):
                pids = ready_pids(client)
                assert (await outcome_of(served, behaviour))["status"] in ("succeeded", "failed")
                await until(partial(is_replaced, client, pids), "another process serves", timeout_s=60)
                assert (await outcome_of(served, model.WELL))["status"] == "succeeded"
            assert (await outcome_of(served, model.ENDS))["error"]["code"] == "job_quarantined"
            assert (await outcome_of(served, model.WELL))["status"] == "succeeded"
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    logged = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    assert not [line for line in logged if line["logger"] == "app.unreadable"]
    told = {line["job_id"]: line for line in logged if line["message"] == "the model failed on a job"}
    for job in failed:
        line = told[job["id"]]
        assert (line["model"], line["version"], line["worker_id"]) == ("Unruly", 1, job["worker_id"])
        assert job["id"].startswith(f"{line['batch_id']}.")


def test_a_model_that_exits_while_it_loads_ends_its_worker_with_an_error(start_worker: Start) -> None:
    worker = start_worker("1", MODEL_NAME="Unruly", **{model.LOADING: "exit()"})
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "it raised SystemExit(None), which would end its worker" in errors.splitlines()[-1]


CHANGES = """
import locale, logging, socket, warnings
os.chdir("/")
os.environ.clear()
os.umask(0o777)
socket.setdefaulttimeout(1e-6)
locale.setlocale(locale.LC_ALL, "C")
logging.getLogger().handlers.clear()
warnings.simplefilter("error")
sys.stdout = sys.stderr = None
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
"""


def relative(folder: Path) -> str:
    return os.path.relpath(folder)


async def test_a_model_that_changes_its_process_while_it_loads_is_served_all_the_same(
    start_worker: Start, redis_server: RedisServer
) -> None:
    worker = start_worker(
        "1",
        MODEL_NAME="Unruly",
        REDIS_URL="",
        MODELYARD_STATE_DIR=relative(redis_server.socket.parent),
        **{model.LOADING: CHANGES},
    )
    with redis.Redis.from_url(redis_server.url) as client:
        await until(lambda: ready_pids(client) or worker.poll() is not None, "it starts", timeout_s=60)
        assert worker.poll() is None, worker.communicate()
        async with serving(settings_for(redis_server.url, heartbeat_s=HEARTBEAT_S)) as served:
            assert (await outcome_of(served, model.WELL))["status"] == "succeeded"
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
