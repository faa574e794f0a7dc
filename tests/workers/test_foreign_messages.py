"""Who reaches Redis can put any message on a queue and any command on Celery's channel: a worker runs none of it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from app.celery_app import create_celery
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.redis import keys
from app.settings import Settings
from app.worker_record import decode_record
from tests.pool_samples import RedisServer
from tests.workers.worker_processes import QUEUE, accept
from workers.consumer.remote_control import REFUSED

WaitUntil = Callable[..., None]
MARK = "mark"


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def worker(
    redis_server: RedisServer, registry: str, wait_until: WaitUntil
) -> Iterator[subprocess.Popen[str]]:
    """A worker that is ready."""
    own = {
        "REDIS_URL": redis_server.url,
        "MLFLOW_TRACKING_URI": registry,
        "MODEL_NAME": "Scikit",
        "MODEL_VERSION": "1",
        "ALLOW_PICKLE_MODELS": "true",
        "MODELYARD_HEARTBEAT_S": "0.2",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "workers"], env=os.environ | own, stderr=subprocess.PIPE, text=True
    )
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: is_ready(client), timeout_s=60, what="the worker is ready")
    yield process
    process.kill()
    process.communicate()


def is_ready(client: redis.Redis) -> bool:
    records = client.mget(client.keys(keys.worker("*")) or ["none"])
    return any(decode_record(data).state == "ready" for data in records if isinstance(data, bytes))


def message(url: str, batch_id: str = "B" * 32) -> dict[str, Any]:
    """A message as a controller writes it, for a batch that does not exist."""
    template = write_template(create_celery(Settings(redis_url=url)))
    made: dict[str, Any] = json.loads(WakeUpMessages(template, QUEUE).write(batch_id))
    return made


def with_body(good: dict[str, Any], body: bytes, content_type: str, encoding: str) -> dict[str, Any]:
    return good | {
        "body": base64.b64encode(body).decode(),
        "content-type": content_type,
        "content-encoding": encoding,
    }


def with_headers(good: dict[str, Any], **headers: Any) -> dict[str, Any]:
    return good | {"headers": good["headers"] | headers}


def malicious(good: dict[str, Any], trap: bytes) -> dict[str, dict[str, Any]]:
    """Messages by what they try."""
    call = {
        "task": "modelyard.run_batch",
        "args": [],
        "kwargs": {},
        "options": {"queue": MARK},
        "immutable": True,
    }
    embedded = {"callbacks": [call], "errbacks": [call], "chain": [call], "chord": call}
    return {
        "pickle": with_body(good, trap, "application/x-python-serialize", "binary"),
        "pickle called json": with_body(good, trap, "application/json", "utf-8"),
        "yaml": with_body(good, b"!!python/object/apply:os.system ['true']", "application/x-yaml", "utf-8"),
        "an unknown type": with_body(good, trap, "application/data", "binary"),
        "a bad charset": with_body(good, b"[[], {}, {}]", "application/json", "no-such-charset"),
        "compressed pickle": with_headers(
            with_body(good, zlib.compress(trap), "application/x-python-serialize", "binary"),
            compression="application/x-gzip",
        ),
        "callbacks in the body": with_body(
            good, json.dumps([[], {}, embedded]).encode(), "application/json", "utf-8"
        ),
        "arguments": with_body(good, b'[["rm"], {"task": 1}, null]', "application/json", "utf-8"),
        "callbacks in the headers": with_headers(good, **embedded, link=[call], link_error=[call]),
        "another task": with_headers(good, task="os.system"),
        "celery's own task": with_headers(
            with_body(good, json.dumps([[call, [[]]], {}, {}]).encode(), "application/json", "utf-8"),
            task="celery.map",
        ),
        "a chord": with_headers(
            with_body(good, json.dumps([[[call], call], {}, {}]).encode(), "application/json", "utf-8"),
            task="celery.chord",
        ),
        "a group": with_headers(good, group="G" * 32, chord=call, root_id=MARK, parent_id=MARK),
        "far in the future": with_headers(good, eta="9999-12-31T23:59:59+00:00", expires="1970-01-01"),
        "no time at all": with_headers(good, eta="tomorrow", expires=[]),
        "limits": with_headers(good, timelimit=[0, "x"], shadow={"a": 1}, retries="x", stamps={"a": 1}),
        "a reply": good | {"properties": good["properties"] | {"reply_to": MARK, "priority": "x"}},
        "a foreign id": with_headers(good, id="../../" + MARK),
        "no id": with_headers(good, id=None),
        "an id that is a list": with_headers(good, id=[MARK]),
    }


def test_no_message_makes_a_worker_do_anything_but_run_its_batches(
    worker: subprocess.Popen[str], redis_server: RedisServer, wait_until: WaitUntil, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    bad = malicious(message(redis_server.url), pickle.dumps(Trap(sprung)))
    with redis.Redis.from_url(redis_server.url) as client:
        for name, each in bad.items():
            client.lpush(QUEUE, json.dumps(each))
            good = accept(redis_server.url)
            wait_until(
                lambda batch=good: worker.poll() is not None or client.hget(keys.batch(batch), "out"),
                timeout_s=30,
                what=f"the batch after {name} is run",
            )
            assert worker.poll() is None, f"{name} ended the worker: {worker.communicate()[1][-2000:]}"
        assert not sprung.exists()
        assert not [key for key in client.keys("*") if MARK.encode() in key]


def test_remote_commands_can_look_at_a_worker_but_not_change_it(
    worker: subprocess.Popen[str], redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    celery: Celery = create_celery(Settings(redis_url=redis_server.url))
    control = celery.control
    for command, arguments in {
        "shutdown": {},
        "pool_restart": {"modules": ["antigravity"], "reload": True},
        "pool_grow": {"n": 5},
        "rate_limit": {"task_name": "modelyard.run_batch", "rate_limit": "1/h"},
        "time_limit": {"task_name": "modelyard.run_batch", "hard": 1},
        "add_consumer": {"queue": MARK},
        "cancel_consumer": {"queue": QUEUE},
        "revoke": {"task_id": "B" * 32, "terminate": True},
        "disable_events": {},
        "hello": {"from_node": "other", "revoked": {"B" * 32: 1}},
        "no_such_command": {},
    }.items():
        control.broadcast(command, arguments=arguments)
    batch_id = accept(redis_server.url)
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: client.hget(keys.batch(batch_id), "out"), what="the worker still runs batches")
    refused = control.broadcast("pool_grow", arguments={"n": 5}, reply=True, timeout=5, limit=1)
    assert [reply for replies in refused for reply in replies.values()] == [{"error": REFUSED}]
    seen = control.inspect(timeout=5, limit=1).active_queues()
    assert [queue["name"] for queues in seen.values() for queue in queues] == [QUEUE]
    registered = control.inspect(timeout=5, limit=1).registered(None)
    assert [name for names in registered.values() for name in names] == ["modelyard.run_batch"]
    celery.close()
    assert worker.poll() is None
    worker.terminate()
    assert "Traceback" not in worker.communicate(timeout=30)[1]
