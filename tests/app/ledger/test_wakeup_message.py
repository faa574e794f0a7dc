"""The one task message: byte for byte what Celery's own `send_task` stores on a real Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from celery import Celery

from app.celery_app import BATCH_TASK, create_celery
from app.ledger import ids
from app.ledger.wakeup_message import WakeUpMessages, batch_id_of, unannounced, write_template
from app.redis import keys
from app.settings import Settings
from tests.pool_samples import MODEL, SIGNER, RedisServer

QUEUE = keys.queue_name(MODEL, 1)


def written(celery: Celery, batch_id: str, queue: str = QUEUE) -> bytes:
    return WakeUpMessages(write_template(celery), queue).write(batch_id)


def test_a_written_message_equals_what_celery_itself_stores(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    batch_id = SIGNER.new_batch_id(1_700_000_000_000, 1)
    celery = create_celery(Settings(redis_url=redis_server.url))
    celery.send_task(BATCH_TASK, task_id=batch_id, queue=QUEUE)
    celery.close()
    stored = client.lpop(QUEUE)
    assert isinstance(stored, bytes)
    assert comparable(written(celery, batch_id)) == comparable(stored)


def comparable(message: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(message)
    assert len(document["properties"].pop("delivery_tag")) == 36
    return document


@pytest.mark.parametrize("queue", [QUEUE, keys.queue_name('Zwölf "Boxer" \\ 囲', 3)])
def test_a_message_is_json_whatever_the_models_name(queue: str) -> None:
    batch_id = SIGNER.new_batch_id(1_700_000_000_000, 1)
    message = written(create_celery(Settings(redis_url="redis://nowhere")), batch_id, queue)
    document = json.loads(message)
    assert document["headers"]["id"] == document["properties"]["correlation_id"] == batch_id
    assert document["headers"]["task"] == BATCH_TASK
    assert document["properties"]["delivery_info"]["routing_key"] == queue
    assert batch_id_of(message) == batch_id


def test_two_messages_of_one_batch_have_different_delivery_tags() -> None:
    settings = Settings(redis_url="redis://nowhere")
    template = write_template(create_celery(settings))
    messages = WakeUpMessages(template, QUEUE)
    tags = {json.loads(messages.write("id"))["properties"]["delivery_tag"] for _ in range(10)}
    assert len(tags) == 10


@pytest.mark.parametrize("message", [b"", b"{}", b'{"correlation_id": "', b"\xff\xfe"])
def test_a_foreign_message_has_no_batch_id(message: bytes) -> None:
    assert batch_id_of(message) is None


def test_a_batch_whose_id_tells_the_wrong_order_is_not_taken_for_lost() -> None:
    """The clock of a controller was put back between two batches, or two controllers sent them."""
    first, second, lost = (SIGNER.new_batch_id(at_ms, 1) for at_ms in (5000, 4400, 3000))
    unclaimed = [(each, ids.accepted_at_ms(each)) for each in (lost, second, first)]
    head = b'"correlation_id": "%s"' % first.encode()
    assert unannounced(unclaimed, head, 9000, clocks_apart_ms=1000) == [lost]
    assert unannounced(unclaimed, head, 9000) == [lost, second]
    assert unannounced(unclaimed, None, 4500) == [lost, second]
