"""Anyone who reaches Redis can put any message on a queue: a worker runs none of it."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import redis

from app.celery_app import create_celery
from app.ledger import commands, wire
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.redis import keys
from app.redis.script import run_now
from app.settings import Settings
from tests.pool_samples import RedisServer
from tests.workers.worker_processes import LIGHT, LIGHT_MODEL, LIGHT_QUEUE, Start, accept, ready_pids

WaitUntil = Callable[..., None]
MARK = "mark"


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def message(url: str, batch_id: str = "B" * 32) -> dict[str, Any]:
    """A message as a controller writes it, for a batch that does not exist."""
    template = write_template(create_celery(Settings(redis_url=url)))
    made: dict[str, Any] = json.loads(WakeUpMessages(template, LIGHT_QUEUE).write(batch_id))
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
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil, tmp_path: Path
) -> None:
    worker = start_worker("1", **LIGHT)
    sprung = tmp_path / "sprung"
    bad = malicious(message(redis_server.url), pickle.dumps(Trap(sprung)))
    with redis.Redis.from_url(redis_server.url) as client:
        wait_until(lambda: ready_pids(client), timeout_s=60, what="the worker is ready")
        for name, each in bad.items():
            client.lpush(LIGHT_QUEUE, json.dumps(each))
            good = accept(redis_server.url, LIGHT_MODEL)
            wait_until(
                lambda batch=good: worker.poll() is not None or client.hget(keys.batch(batch), "out"),
                timeout_s=30,
                what=f"the batch after {name} is run",
            )
            assert worker.poll() is None, f"{name} ended the worker: {worker.communicate()[1][-2000:]}"
        assert not sprung.exists()
        assert not [key for key in client.keys("*") if MARK.encode() in key]


def test_a_worker_leaves_batches_alone_that_were_moved_to_another_queue(
    start_worker: Start, redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    other = keys.queue_name(LIGHT_MODEL, 7)
    with redis.Redis.from_url(redis_server.url) as client:
        batches = [accept(redis_server.url, LIGHT_MODEL) for _ in range(6)]
        moved = batches[::2]
        for each in moved:
            raw = client.hget(keys.batch(each), "head")
            assert isinstance(raw, bytes)
            head = msgspec.structs.replace(wire.decode_head(raw), queue=other, model_version=7)
            assert run_now(client, commands.reroute(each, LIGHT_QUEUE, raw, head, b"message")) == 2
        worker = start_worker("1", **LIGHT)  # its queue still has the messages of the moved ones
        wait_until(lambda: not client.llen(LIGHT_QUEUE) and client.hget(keys.BACKLOG, LIGHT_QUEUE) == b"0")
        assert worker.poll() is None
        ended = [each for each in batches if client.hexists(keys.batch(each), "out")]
        claimed = [each for each in batches if client.hexists(keys.batch(each), "attempts")]
        assert ended == claimed == batches[1::2]
        assert client.hget(keys.BACKLOG, other) == b"6"
        assert sorted(client.zrange(keys.pending(other), 0, -1)) == sorted(each.encode() for each in moved)
