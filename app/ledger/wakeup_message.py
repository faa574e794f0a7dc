"""The Celery message that wakes a worker for a batch: the one spelling of kombu's JSON.

The task takes no arguments: its id is the batch's id. So Flower's list of tasks is a list of batches, and a message of
one queue differs from the next only in its ids. A shortcut around Celery's `send_task`:

Saves: a message costs microseconds instead of hundreds, and travels in the transaction that writes the batch's record.
Relies on: Celery's message as its in-memory transport stores it (`channel._get`), which is what kombu's Redis transport
stores but for the delivery properties; and the spelling of its correlation id, which `include/take.lua` reads, too.
Breaks if: kombu stores another form; `write_template` refuses to start then.
Switch off: there is no setting; `send_task` with the batch's id as `task_id` does the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

from celery import Celery
from kombu import Connection, Queue
from kombu.utils.json import dumps, loads

from app.celery_app import BATCH_TASK
from app.errors import ConfigurationError
from app.ledger import ids

_ID_PLACEHOLDER = "<batch id>"
_TAG_PLACEHOLDER = "<delivery tag>"
_QUEUE_PLACEHOLDER = "<queue>"
_BEFORE_ID, _AFTER_ID = b'"correlation_id": "', b'"'


def write_template(celery: Celery) -> bytes:
    """A batch's message with placeholders, as Celery writes it and kombu's Redis transport stores it.

    Raises:
        ConfigurationError: The installed Celery or kombu writes another form than workers look for.
    """
    with Connection("memory://") as connection:
        channel = connection.default_channel
        queue = Queue(_QUEUE_PLACEHOLDER, routing_key=_QUEUE_PLACEHOLDER)(channel)
        queue.declare()
        celery.send_task(BATCH_TASK, task_id=_ID_PLACEHOLDER, queue=queue, connection=connection)
        payload = channel._get(_QUEUE_PLACEHOLDER)
        queue.delete()
    payload["properties"]["delivery_tag"] = _TAG_PLACEHOLDER
    payload["properties"]["delivery_info"] = {"exchange": "", "routing_key": _QUEUE_PLACEHOLDER}
    template: bytes = dumps(payload).encode()
    found = (payload["headers"].get("id"), batch_id_of(template), loads(template) == payload)
    if found != (_ID_PLACEHOLDER, _ID_PLACEHOLDER, True):
        raise ConfigurationError(
            "the installed Celery or kombu writes messages that workers would not recognise: the batch's id is not "
            "where they look for it; install the versions that Modelyard asks for"
        )
    return template


class WakeUpMessages:
    """Writes the messages of one queue.

    Args:
        template: What `write_template` answers.
        queue: Queue of a model version.
    """

    def __init__(self, template: bytes, queue: str) -> None:
        template = template.replace(_QUEUE_PLACEHOLDER.encode(), dumps(queue)[1:-1].encode())
        self._before_tag, self._after_tag = template.split(_TAG_PLACEHOLDER.encode())

    def write(self, batch_id: str) -> bytes:
        """The message that wakes a worker for `batch_id`."""
        message = self._before_tag + str(uuid4()).encode() + self._after_tag
        return message.replace(_ID_PLACEHOLDER.encode(), batch_id.encode())


def batch_id_of(message: bytes) -> str | None:
    """Batch id in a stored message, or None if it is not one of ours."""
    _, found, rest = message.partition(_BEFORE_ID)
    batch_id, quote, _ = rest.partition(_AFTER_ID)
    return batch_id.decode("ascii", "replace") if found and quote else None


def unannounced(
    unclaimed: Iterable[tuple[str, float]],
    next_message: bytes | None,
    before_ms: float,
    clocks_apart_ms: float = 0.0,
) -> list[str]:
    """Batches that the queue, first in first out, should have given out by now.

    Args:
        unclaimed: Batches that nobody runs, each with when it was accepted (ms).
        next_message: Stored message that is next to be taken, or None.
        before_ms: Later ones may still be on their way.
        clocks_apart_ms: How much later than the next one a batch may have been sent that its id tells to be older.
    """
    next_batch = batch_id_of(next_message) if next_message else None
    if next_batch and ids.is_well_formed(next_batch):
        before_ms = min(before_ms, ids.accepted_at_ms(next_batch) - clocks_apart_ms)
    return [batch for batch, at_ms in unclaimed if int(at_ms) < before_ms and batch != next_batch]
