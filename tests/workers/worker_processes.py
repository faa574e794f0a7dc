"""What tests do with real workers: give them batches, look at their records, see whether they run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import redis
import redis.asyncio

from app.celery_app import create_celery
from app.ledger.commands import NewBatch
from app.ledger.wakeup_message import WakeUpMessages, write_template
from app.redis import keys
from app.settings import Settings
from app.worker_record import WorkerRecord, decode_record
from tests import light_registry
from tests.pool_samples import accept_now, new_batch

QUEUE = keys.queue_name("Scikit", 1)
# For tests to which the kind of model does not matter.
LIGHT_MODEL = light_registry.MODEL
LIGHT_QUEUE = keys.queue_name(LIGHT_MODEL, 1)
LIGHT = {"MODEL_NAME": LIGHT_MODEL}  # for `start_worker`
Start = Callable[..., "subprocess.Popen[str]"]


def accept(url: str, model_name: str = "Scikit") -> str:
    """Accept one batch of two jobs for version 1, exactly as a controller does."""
    queue = keys.queue_name(model_name, 1)
    batch = new_batch(2, queue=queue, model_name=model_name, dtype="float64")
    message = WakeUpMessages(write_template(create_celery(Settings(redis_url=url))), queue).write(
        batch.batch_id
    )
    sent = NewBatch(batch.batch_id, batch.head, batch.data, message, batch.accepted_at_ms)
    accept_now(url, sent)
    return batch.batch_id


def records(client: redis.Redis) -> list[WorkerRecord]:
    found = [client.get(name) for name in client.scan_iter(keys.worker("*"))]
    return [decode_record(data) for data in found if isinstance(data, bytes)]


def ready_pids(client: redis.Redis) -> set[int]:
    return {record.pid for record in records(client) if record.state == "ready"}


def runs(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False
