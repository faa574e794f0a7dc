"""The Celery message that wakes a worker for a batch, written directly as kombu's JSON.

The task takes no arguments: its id is the batch's id. So Flower's list of tasks is a list of batches, and the messages
of a queue differ only in their ids. A shortcut around Celery's `send_task`:

Saves: a message takes a few microseconds instead of hundreds and is part of the transaction that writes the record.
Relies on: Celery's message as its in-memory transport stores it (`channel._get`). kombu's Redis transport stores the
same, apart from the delivery properties. Also the format of its correlation id, which `include/taking.lua` reads, too.
Breaks if: kombu stores another form; `write_template` then prevents the start.
Switch off: there is no setting; `send_task` with the batch's id as `task_id` has the same effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

from celery import Celery
from kombu import Connection, Queue
from kombu.utils.json import dumps, loads

from app.celery_app import BATCH_TASK
from app.ledger import ids
from app.server_errors import ConfigurationError

_ID_PLACEHOLDER = "<batch id>"
_TAG_PLACEHOLDER = "<delivery tag>"
_QUEUE_PLACEHOLDER = "<queue>"
_BEFORE_ID, _AFTER_ID = b'"correlation_id": "', b'"'


def write_template(celery: Celery) -> bytes:
    """A batch's message with placeholders, as Celery writes it and kombu's Redis transport stores it.

    Raises:
        ConfigurationError: The installed Celery or kombu writes a form that workers do not expect.
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
        template: Message template of `write_template`.
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
    """Unclaimed batches that a first-in-first-out queue should have delivered by now: their messages are lost.

    Args:
        unclaimed: Unclaimed batches, each with its acceptance time (ms).
        next_message: Stored message that is next in the queue, or None.
        before_ms: Batches accepted later may still be in transit.
        clocks_apart_ms: Clock tolerance: a batch that is older by its id may have been sent this much later.
    """
    next_batch = batch_id_of(next_message) if next_message else None
    if next_batch and ids.is_well_formed(next_batch):
        before_ms = min(before_ms, ids.accepted_at_ms(next_batch) - clocks_apart_ms)
    return [batch for batch, at_ms in unclaimed if int(at_ms) < before_ms and batch != next_batch]
