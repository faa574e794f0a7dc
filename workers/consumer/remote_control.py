"""What a message may make a worker do: run one batch, or, by Celery's remote control, tell Flower what it does.

Whoever can write to Redis can put any message there. So nothing of one counts but the batch's id: no arguments,
no callbacks, no time to run at, no other task; and no remote command changes a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.worker.control import Panel

from app.celery_app import BATCH_TASK

# What Flower sends; it also turns events on, which are on.
ANSWERED_COMMANDS = frozenset(
    {
        *("active", "active_queues", "conf", "ping", "registered"),
        *("reserved", "revoked", "scheduled", "stats"),
        *("enable_events", "heartbeat"),
    }
)
STRATEGY = f"{__name__}:strategy"  # by name: as an attribute of the task, a function would become its method


def strategy(task: Any, _: Celery, consumer: Any) -> Callable[..., None]:
    """Celery's strategy of the batch task: it runs the batch that a message's id names, and reads nothing else of it.

    Celery's default strategy makes a request of each message and traces it; a wake-up has no use for either.
    """

    def take(message: Any, *_: Any) -> None:
        send = consumer.event_dispatcher.send
        # `workers.consumer.transport` lets nothing but wake-ups come this far
        for ran in task.run(message.headers["id"]):
            uuid = ran.batch_id
            send("task-received", uuid=uuid, name=task.name, args="()", kwargs="{}", timestamp=ran.at_s)
            send("task-succeeded", uuid=uuid, result=ran.result, runtime=ran.took_s)

    return take


def only_batches(celery: Celery) -> None:
    """Take away Celery's own tasks, which run and send other tasks, and its commands that change a worker."""
    for name in [name for name in celery.tasks if name != BATCH_TASK]:
        celery.tasks.unregister(name)
    for name in Panel.data.keys() - ANSWERED_COMMANDS:
        Panel.data[name] = _refuse_command
    # A traceback for each command that is none: whoever reaches Redis could fill the log.
    logging.getLogger("kombu.pidbox").setLevel(logging.CRITICAL)


def _refuse_command(_: Any, **__: Any) -> dict[str, str]:
    return {"error": "no command changes a worker"}
