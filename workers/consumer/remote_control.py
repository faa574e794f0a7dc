"""Celery's remote control of a worker: read commands are answered, commands that change a worker are refused.

A thread answers them, because forward passes block Celery's event loop: `celery inspect active` shows the running
batch. The same thread sends the events, so that Flower sees the start of a batch.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any

from celery import Celery, bootsteps
from celery.utils.collections import AttributeDict
from celery.worker.control import Panel

from app.celery_app import BATCH_TASK
from workers.consumer.batch_task import TaskEvents

logger = logging.getLogger(__name__)
EVENTS_FLUSH_S = 0.25
EVENTS_AT_ONCE = 48
RECONNECT_S = 0.5
STOP_LIMIT_S = 2.0
# Read-only commands. The last line is for Flower, which enables events (always enabled here) and requests a heartbeat.
# Without `hello`, by which other Celery workers transfer their revoked tasks.
ANSWERED_COMMANDS = frozenset(
    {
        *("active", "active_queues", "clock", "conf", "memdump", "memsample", "objgraph", "ping"),
        *("query_task", "registered", "report", "reserved", "revoked", "scheduled", "stats"),
        *("dump_active", "dump_conf", "dump_reserved", "dump_revoked", "dump_schedule", "dump_tasks"),
        *("enable_events", "heartbeat"),
    }
)
REFUSED = "this worker cannot be changed by remote control; stop it with SIGTERM, start others with `modelyard worker`"


def only_batches(celery: Celery) -> None:
    """Remove Celery's built-in tasks, which run and send other tasks, and its commands that change a worker."""
    for name in [name for name in celery.tasks if name != BATCH_TASK]:
        celery.tasks.unregister(name)
    for name in Panel.data.keys() - ANSWERED_COMMANDS:
        Panel.data[name] = _refuse_command
    # Celery logs a traceback for each invalid command: anyone with access to Redis could fill the log.
    logging.getLogger("kombu.pidbox").setLevel(logging.CRITICAL)
    celery.conf.worker_enable_remote_control = False  # Celery's own implementation runs in the event loop
    celery.steps["consumer"].add(RemoteControl)


def _refuse_command(_: Any, **__: Any) -> dict[str, str]:
    return {"error": REFUSED}


class RemoteControl(bootsteps.StartStopStep):  # type: ignore[misc]
    """Answers commands and sends events in a thread that survives connection losses of the consumer.

    Events are published in groups: one publish per event would take 20 % of a worker's time.
    """

    requires = ("celery.worker.consumer:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=[consumer], name="remote-control", daemon=True)

    def start(self, consumer: Any) -> None:
        """Configure the connection's new event dispatcher and start the thread once. Called on each connection."""
        consumer.event_dispatcher.on_send_buffered = None
        consumer.event_dispatcher.buffer_limit = EVENTS_AT_ONCE
        if not self._thread.ident:
            self._thread.start()

    def stop(self, consumer: Any) -> None:
        """Do nothing when the consumer loses its connection: the thread has its own."""

    def shutdown(self, consumer: Any) -> None:
        """Stop the thread when the worker ends."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(STOP_LIMIT_S)

    def _run(self, consumer: Any) -> None:
        lost = (*consumer.connection_errors, *consumer.channel_errors)
        while not self._closing.is_set():
            with suppress(*lost), consumer.app.connection_for_read() as connection:
                self._answer(consumer, connection)
            self._closing.wait(RECONNECT_S)

    def _answer(self, consumer: Any, connection: Any) -> None:
        state = AttributeDict(app=consumer.app, hostname=consumer.hostname, consumer=consumer, tset=set)
        mailbox = consumer.app.control.mailbox
        node = mailbox.Node(consumer.hostname, state, connection.channel(), handlers=Panel.data)
        node.listen()
        events: TaskEvents = consumer.app.tasks[BATCH_TASK].events
        while not self._closing.is_set():
            with suppress(TimeoutError):
                connection.drain_events(timeout=EVENTS_FLUSH_S)
            connection.transport.cycle.maybe_check_subclient_health()
            if dispatcher := consumer.event_dispatcher:
                events.send(dispatcher)
                dispatcher.flush()
