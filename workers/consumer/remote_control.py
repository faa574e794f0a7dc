"""What a message may make a worker do: run one batch, or, by Celery's remote control, tell what the worker does.

Anyone who can write to Redis can put any message there. So nothing of a message counts but the batch's id: no
arguments, no callbacks, no time to run at, no other task; and no remote command changes a worker.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery, signals, states
from celery.worker import state
from celery.worker.control import Panel

from app.celery_app import BATCH_TASK
from workers.batch_runner import Ran

# Commands that only read. Flower also sends the last line: to turn events on, which are on, and to ask for a heartbeat.
# Not `hello`, by which other Celery workers hand over what they have revoked.
ANSWERED_COMMANDS = frozenset(
    {
        *(
            "active",
            "active_queues",
            "clock",
            "conf",
            "memdump",
            "memsample",
            "objgraph",
            "ping",
            "query_task",
        ),
        *("registered", "report", "reserved", "revoked", "scheduled", "stats"),
        *("dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks"),
        *("enable_events", "heartbeat"),
    }
)
REFUSED = (
    "this worker takes no changes by remote control; stop it with SIGTERM, "
    "and start others with `modelyard worker`"
)
STRATEGY = f"{__name__}:strategy"  # by name: as an attribute of the task, a function would become its method


class RunningBatch:
    """What Celery's remote control reads of a batch that runs, as of a `celery.worker.request.Request`."""

    __slots__ = ("__weakref__", "hostname", "id", "name", "time_start")

    def __init__(self, batch_id: str, name: str, hostname: str) -> None:
        self.id = batch_id
        self.name = name
        self.hostname = hostname
        self.time_start = time.time()

    def info(self, safe: bool = False) -> dict[str, Any]:
        """The batch as `inspect active` and `inspect query_task` show a task."""
        return {
            "id": self.id,
            "name": self.name,
            "args": [],
            "kwargs": {},
            "type": self.name,
            "hostname": self.hostname,
            "time_start": self.time_start,
            "acknowledged": True,
            "delivery_info": {},
            "worker_pid": os.getpid(),
        }


def strategy(task: Any, _: Celery, consumer: Any) -> Callable[..., None]:
    """Celery's strategy of the batch task: it runs the batch that a message's id names, and reads nothing else of it.

    Celery's default strategy makes a request of each message and traces it. A wake-up has no use for most of that: what
    is left are Celery's counts, its signals and its events, once a batch.
    """
    running: list[RunningBatch] = []  # Celery's state holds only weak references

    def begin(batch_id: str) -> None:
        running[:] = [RunningBatch(batch_id, task.name, consumer.hostname)]
        state.task_accepted(running[0])
        signals.task_prerun.send(sender=task, task_id=batch_id, task=task, args=(), kwargs={})

    def end(ran: Ran) -> None:
        state.task_ready(running[0])
        if ran.failure is None:
            signals.task_success.send(sender=task, result=ran.result)
        else:
            _send_failure(task, ran.batch_id, ran.failure)
        signals.task_postrun.send(
            sender=task,
            task_id=ran.batch_id,
            task=task,
            args=(),
            kwargs={},
            retval=ran.result,
            state=states.FAILURE if ran.failure else states.SUCCESS,
        )

    def take(message: Any, *_: Any) -> None:
        send = consumer.event_dispatcher.send
        # `workers.consumer.transport` lets nothing but wake-ups come this far
        for ran in task.run(message.headers["id"], begin):
            end(ran)
            uuid = ran.batch_id
            send("task-received", uuid=uuid, name=task.name, args="()", kwargs="{}", timestamp=ran.at_s)
            send("task-succeeded", uuid=uuid, result=ran.result, runtime=ran.took_s)

    return take


def _send_failure(task: Any, batch_id: str, error: Exception) -> None:
    if signals.task_failure.receivers:
        traceback = error.__traceback__
        signals.task_failure.send(
            sender=task,
            task_id=batch_id,
            exception=error,
            args=(),
            kwargs={},
            traceback=traceback,
            einfo=ExceptionInfo((type(error), error, traceback)),
        )


def only_batches(celery: Celery) -> None:
    """Take away Celery's own tasks, which run and send other tasks, and its commands that change a worker."""
    for name in [name for name in celery.tasks if name != BATCH_TASK]:
        celery.tasks.unregister(name)
    for name in Panel.data.keys() - ANSWERED_COMMANDS:
        Panel.data[name] = _refuse_command
    # A traceback for each command that is none: whoever reaches Redis could fill the log.
    logging.getLogger("kombu.pidbox").setLevel(logging.CRITICAL)


def _refuse_command(_: Any, **__: Any) -> dict[str, str]:
    return {"error": REFUSED}
