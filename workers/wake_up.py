"""What a message may make a worker do: run one batch, or, by Celery's remote control, tell Flower what it does.

Whoever can write to Redis can put any message there. So nothing of one counts but the batch's id: no arguments,
no callbacks, no time to run at, no other task; and no remote command changes a worker.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.worker.control import Panel
from celery.worker.request import Request
from celery.worker.strategy import default

from app.celery_app import BATCH_TASK
from app.ids import BATCH_ID_LENGTH

logger = logging.getLogger(__name__)

# Flower asks these; it also turns events on, which are on.
ANSWERED_COMMANDS = frozenset(
    {
        *(
            "active",
            "active_queues",
            "conf",
            "ping",
            "registered",
            "reserved",
            "revoked",
            "scheduled",
            "stats",
        ),
        "enable_events",
    }
)
STRATEGY = f"{__name__}:strategy"  # by name: as an attribute of the task, a function would become its method
_BATCH_ID = re.compile(rf"[\w=-]{{{BATCH_ID_LENGTH}}}", re.ASCII)
_NO_ARGUMENTS: tuple[Any, ...] = ((), {}, {})


class WakeUp(Request):  # type: ignore[misc]
    """A message that needs no acknowledgement."""

    def acknowledge(self) -> None:
        """Celery calls this once the task has run."""
        self.acknowledged = True


class _Message:
    """What Celery is given in a message's place."""

    __slots__ = ("delivery_info", "headers")
    content_type = content_encoding = properties = None
    body = payload = _NO_ARGUMENTS

    def __init__(self, batch_id: str, delivery_info: Any) -> None:
        self.headers = {"id": batch_id, "task": BATCH_TASK, "argsrepr": "()", "kwargsrepr": "{}"}
        self.delivery_info = delivery_info


def strategy(task: Any, app: Celery, consumer: Any) -> Callable[..., None]:
    """Celery's strategy of the batch task: its default one, shown nothing of a message but the batch's id."""
    handle = default(task, app, consumer)

    def take(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        batch_id = message.headers.get("id")
        if not (isinstance(batch_id, str) and _BATCH_ID.fullmatch(batch_id)):
            logger.warning("a message without a batch's id is dropped")
            return
        handle(_Message(batch_id, message.delivery_info), None, ack, reject, callbacks)

    return take


def only_batches(celery: Celery) -> None:
    """Take away Celery's own tasks, which run and send other tasks, and its commands that change a worker."""
    for name in [name for name in celery.tasks if name != BATCH_TASK]:
        celery.tasks.unregister(name)
    for name in Panel.data.keys() - ANSWERED_COMMANDS:
        del Panel.data[name]
