"""What Celery's own tools and signals see of a real worker: `celery inspect`, `celery control`, receivers in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import redis.asyncio

from app.celery_app import BATCH_TASK, create_celery
from app.ledger.commands import NewBatch
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.redis import keys
from app.settings import Settings
from tests.conftest import WaitUntil, running_redis
from tests.pool_samples import accept_now, new_batch
from tests.workers import unruly_model
from tests.workers.worker_processes import ready_pids, records
from workers.consumer.remote_control import REFUSED

QUEUE = keys.queue_name("Unruly", 1)
BAD_SAMPLE, BLOCKING_SAMPLE = 2, 3
PASSWORD = "secret"
# Runs in the worker as it loads its model.
MODEL = f"""
import time

def _behave(behaviour):
    if behaviour == {BAD_SAMPLE}:
        raise ValueError("a bad sample")
    while behaviour == {BLOCKING_SAMPLE} and not os.path.exists(os.environ["SEEN"] + ".go-on"):
        time.sleep(0.01)
"""
# A user's own module, which the worker imports.
RECEIVERS = """
import json, os
from celery import signals
from celery.worker import state

def tell(signal, sender, task_id="", **told):
    told = {name: value for name, value in told.items() if isinstance(value, (str, dict))} | {
        "error": repr(told.get("exception")),
        "traced": str(told.get("einfo", "")).count("ValueError"),
        "active": [request.info() for request in state.active_requests],
        "current": sender.request.id,
    }
    with open(os.environ["SEEN"], "a") as file:
        print(json.dumps([signal.name, sender.name, task_id, told]), file=file)

for each in (signals.task_prerun, signals.task_postrun, signals.task_failure):
    each.connect(tell, weak=False)
"""


@dataclass
class Worker:
    """A worker that is ready.

    Attributes:
        node: Celery's name of it.
        seen: File with a line for each signal.
        log: What the worker writes on standard error.
    """

    url: str
    node: str
    pid: int
    seen: Path
    log: Path
    client: redis.Redis

    def celery(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Celery's command line."""
        return subprocess.run(
            [sys.executable, "-m", "celery", "-A", "app.celery_app", *arguments],
            env=os.environ | {"REDIS_URL": self.url},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def inspect(self, command: str, *arguments: str) -> Any:
        """What the worker answers."""
        ran = self.celery("inspect", "-t", "20", "-d", self.node, "--json", command, *arguments)
        assert ran.returncode == 0, ran.stderr + ran.stdout
        return json.loads(ran.stdout)[self.node]

    def accept(self, n_jobs: int) -> str:
        """Accept one batch, exactly as a controller does."""
        batch = new_batch(n_jobs, queue=QUEUE, model_name="Unruly", dtype="float64")
        template = write_template(create_celery(Settings(redis_url=self.url)))
        message = WakeUpMessages(template, QUEUE).write(batch.batch_id)
        sent = NewBatch(batch.batch_id, batch.head, batch.data, message, batch.accepted_at_ms)
        accept_now(self.url, sent)
        return batch.batch_id

    def signals_of(self, batch_id: str) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, sender and arguments of the signals that named a batch."""
        lines = self.seen.read_text().splitlines() if self.seen.exists() else []
        told = [json.loads(line) for line in lines]
        return [(name, sender, rest) for name, sender, task_id, rest in told if task_id == batch_id]


@pytest.fixture(scope="module")
def worker(
    registry: str, wait_until: WaitUntil, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("signals")
    seen = folder / "seen"
    (folder / "my_monitor.py").write_text(RECEIVERS)
    with running_redis() as server, redis.Redis.from_url(server.url) as client:
        own = {
            "REDIS_URL": server.url,
            "MLFLOW_TRACKING_URI": registry,
            "MODEL_NAME": "Unruly",
            "MODEL_VERSION": "1",
            "ALLOW_PICKLE_MODELS": "true",
            "MODELYARD_HEARTBEAT_S": "0.5",
            "MODELYARD_WORKER_IMPORTS": "my_monitor",
            "PYTHONPATH": str(folder),
            unruly_model.LOADING: MODEL,
            "SEEN": str(seen),
        }
        command, log = [sys.executable, "-m", "workers"], folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, env=os.environ | own, stderr=output)
        try:
            wait_until(
                lambda: ready_pids(client) or process.poll() is not None,
                timeout_s=90,
                what="the worker is ready",
            )
            [record] = records(client)
            node = f"Unruly-1@{record.worker_id}"
            yield Worker(server.url, node, record.pid, seen, log, client)
        finally:
            process.terminate()
            process.wait(60)


def test_inspect_counts_each_batch_that_a_worker_ran_and_shows_none_active_when_it_is_idle(
    worker: Worker, wait_until: WaitUntil
) -> None:
    before = worker.inspect("stats")
    assert before["pid"] == worker.pid
    batches = [worker.accept(2) for _ in range(3)]
    wait_until(
        lambda: all(worker.client.hget(keys.batch(batch), "out") for batch in batches),
        what="the batches are run",
    )
    total = worker.inspect("stats")["total"]
    assert total == {BATCH_TASK: before["total"].get(BATCH_TASK, 0) + 3}
    assert worker.inspect("active") == []
    assert worker.inspect("query_task", batches[0]) == {}


def test_commands_that_read_are_answered(worker: Worker) -> None:
    assert "celery:5" in worker.inspect("report")["ok"]
    celery = create_celery(Settings(redis_url=worker.url))
    inspect = celery.control.inspect([worker.node], timeout=20)
    try:
        answers = {
            name: getattr(inspect, name)()[worker.node]
            for name in (
                "ping",
                "clock",
                "memsample",
                "active_queues",
                "conf",
                "scheduled",
                "reserved",
                "revoked",
            )
        }
        answers["registered"] = inspect.registered()[worker.node]
    finally:
        celery.close()
    assert answers["ping"] == {"ok": "pong"}
    assert answers["clock"]["clock"] > 0
    assert answers["memsample"].endswith("B")
    assert [queue["name"] for queue in answers["active_queues"]] == [QUEUE]
    assert answers["conf"]["accept_content"] == ["json"]
    assert answers["scheduled"] == answers["reserved"] == answers["revoked"] == []
    assert [name.split()[0] for name in answers["registered"]] == [BATCH_TASK]


def test_a_command_that_would_change_a_worker_is_refused_with_what_to_do_instead(worker: Worker) -> None:
    ran = worker.celery("control", "-t", "20", "-d", worker.node, "shutdown")
    assert REFUSED in ran.stdout, ran.stdout + ran.stderr
    assert "SIGTERM" in REFUSED
    assert [(record.pid, record.state) for record in records(worker.client)] == [(worker.pid, "ready")]


def test_no_remote_command_changes_a_worker(worker: Worker, wait_until: WaitUntil) -> None:
    logged_before = worker.log.stat().st_size
    celery = create_celery(Settings(redis_url=worker.url))
    control = celery.control
    for command, arguments in {
        "shutdown": {},
        "pool_restart": {"modules": ["antigravity"], "reload": True},
        "pool_grow": {"n": 5},
        "rate_limit": {"task_name": BATCH_TASK, "rate_limit": "1/h"},
        "time_limit": {"task_name": BATCH_TASK, "hard": 1},
        "add_consumer": {"queue": "mark"},
        "cancel_consumer": {"queue": QUEUE},
        "revoke": {"task_id": "B" * 32, "terminate": True},
        "disable_events": {},
        "hello": {"from_node": "other", "revoked": {"B" * 32: 1}},
        "no_such_command": {},
    }.items():
        control.broadcast(command, arguments=arguments)
    batch_id = worker.accept(1)
    wait_until(lambda: worker.client.hget(keys.batch(batch_id), "out"), what="the worker still runs batches")
    refused = control.broadcast("pool_grow", arguments={"n": 5}, reply=True, timeout=5, limit=1)
    assert [reply for replies in refused for reply in replies.values()] == [{"error": REFUSED}]
    seen = control.inspect(timeout=5, limit=1).active_queues()
    assert [queue["name"] for queues in seen.values() for queue in queues] == [QUEUE]
    registered = control.inspect(timeout=5, limit=1).registered(None)
    assert [name for names in registered.values() for name in names] == [BATCH_TASK]
    celery.close()
    assert [record.pid for record in records(worker.client)] == [worker.pid]
    assert b"Traceback" not in worker.log.read_bytes()[logged_before:]


def test_celerys_task_signals_are_sent_once_a_batch_to_a_users_module(
    worker: Worker, wait_until: WaitUntil
) -> None:
    good, bad = worker.accept(BAD_SAMPLE), worker.accept(BAD_SAMPLE + 1)
    wait_until(lambda: len(worker.signals_of(bad)) >= 3, what="the signals of the second batch")
    [before, after] = worker.signals_of(good)
    assert [before[:2], after[:2]] == [("task_prerun", BATCH_TASK), ("task_postrun", BATCH_TASK)]
    assert before[2]["kwargs"] == {"model": "Unruly", "version": 1, "jobs": [f"{good}.0", f"{good}.1"]}
    assert after[2]["state"] == "SUCCESS"
    assert (after[2]["retval"], after[2]["active"]) == ("2 of 2 jobs succeeded", [])
    [active] = before[2]["active"]
    assert (active["id"], active["name"], active["hostname"]) == (good, BATCH_TASK, worker.node)
    assert (active["time_start"] > 0, before[2]["current"], after[2]["current"]) == (True, good, good)
    assert [name for name, _, _ in worker.signals_of(bad)] == ["task_prerun", "task_failure", "task_postrun"]
    _, failed, ended = [told for _, _, told in worker.signals_of(bad)]
    assert (ended["state"], ended["retval"]) == ("FAILURE", "2 of 3 jobs succeeded")
    assert "ValueError('a bad sample')" in failed["error"]
    assert failed["traced"]


def test_flower_and_inspect_show_a_batch_while_it_runs_and_how_it_ended(
    worker: Worker, free_port: Callable[[], int], wait_until: WaitUntil
) -> None:
    port = free_port()
    own = {
        "REDIS_URL": worker.url,
        "FLOWER_PORT": str(port),
        "FLOWER_BASIC_AUTH": f"ops:{PASSWORD}",
        "FLOWER_INSPECT_TIMEOUT": "20000",
    }
    command = [sys.executable, "-m", "cli", "flower"]
    flower = subprocess.Popen(command, env=os.environ | own, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", auth=("ops", PASSWORD), timeout=30) as client:

            def tasks() -> dict[str, Any]:
                with suppress(httpx.TransportError):
                    return client.get("/api/tasks").raise_for_status().json()  # type: ignore[no-any-return]
                return {}

            def is_heard() -> bool:
                worker.accept(1)
                return bool(tasks())

            wait_until(is_heard, timeout_s=60, what="Flower hears of batches")
            blocked = worker.accept(BLOCKING_SAMPLE + 1)
            wait_until(lambda: tasks().get(blocked, {}).get("state") == "STARTED", what="Flower shows it")
            [active] = worker.inspect("active")
            jobs = [f"{blocked}.{index}" for index in range(BLOCKING_SAMPLE + 1)]
            assert active["kwargs"] == {"model": "Unruly", "version": 1, "jobs": jobs}
            assert worker.inspect("query_task", blocked)[blocked][0] == "active"
            assert (active["id"], active["delivery_info"]["routing_key"]) == (blocked, QUEUE)
            Path(f"{worker.seen}.go-on").touch()
            wait_until(lambda: tasks()[blocked]["state"] == "FAILURE", what="Flower shows its end")
            shown = tasks()[blocked]
            assert (shown["worker"], shown["routing_key"]) == (worker.node, QUEUE)
            assert all(text in shown["kwargs"] for text in ("'Unruly'", "'version': 1", *jobs))
            assert "a bad sample" in shown["exception"]
            assert "SUCCESS" in {each["state"] for each in tasks().values()}
            assert worker.node in client.get("/api/workers?refresh=1").json()
    finally:
        flower.terminate()
        flower.wait(30)
