"""Configures and runs Celery's consumer: a message is only a wake-up, and the queue has one task.

The ledger records claims and the reconciler finds lost batches, so messages are not acknowledged. That saves two
round trips to Redis per message, and Celery's redelivery of messages cannot run a batch twice.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery, signals
from celery.exceptions import SecurityWarning
from celery.worker.consumer import Consumer
from kombu import Connection, Queue

from app.celery_app import BATCH_TASK
from app.redis.refusals import refusal
from app.redis.sentinel import Primary
from app.server_errors import ConfigurationError, ServiceError, first_line
from app.unreadable import Unreadable, What
from app.worker_record import WorkerRecord
from workers.batch_runner import BatchRunner
from workers.consumer import transport
from workers.consumer.batch_task import STRATEGY, TaskEvents
from workers.consumer.remote_control import only_batches
from workers.process.heartbeat import Heartbeat
from workers.process.prefork_supervisor import EX_SOFTWARE, leave

logger = logging.getLogger(__name__)
RECONNECT_S = 0.5
STANDARD_ERROR = 2


def consume(
    celery: Celery,
    record: WorkerRecord,
    runner: BatchRunner,
    heartbeat: Heartbeat,
    tell_ready: Callable[[], None],
    imports: Sequence[str] = (),
    primary: Primary | None = None,
) -> None:
    """Run batches from the worker's queue until SIGTERM or SIGINT, which start a drain.

    Args:
        tell_ready: Called when the consumer has started.
        imports: Modules that Celery imports first.
        primary: Where Redis is, if the URL names Sentinels.

    Raises:
        ConfigurationError: One of them cannot be imported.
        ServiceError: Celery stopped for another reason.
    """
    events = TaskEvents(record.queue)
    # Celery wants a function, and never calls it: the strategy calls `runner.run_chain`.
    celery.task(name=BATCH_TASK, Strategy=STRATEGY, runner=runner, record=record, events=events)(runner.run)
    only_batches(celery)

    unreadable = Unreadable()

    def on_garbage(what: What, error: Exception) -> None:
        unreadable.note(what, record.queue, f"dropped ({first_line(error)})")
        heartbeat.unreadable_seen()

    observer = transport.Observer(
        record.queue, on_garbage, heartbeat.progress.note, heartbeat.failed_heartbeats, primary
    )
    transport.use(celery, observer)
    # Celery warns against running as root because of pickle; this worker accepts only JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    _connect_signals(record, heartbeat, tell_ready)
    SteadyConsumer.log_file = _log_file()
    celery.conf.broker_connection_max_retries = None  # retry without limit until Redis is reachable
    celery.conf.task_queues = [Queue(record.queue, routing_key=record.queue, no_ack=True)]
    celery.conf.imports = imports
    try:
        worker = celery.Worker(
            hostname=node_name(record),
            pool_cls="solo",
            consumer_cls=SteadyConsumer,
            concurrency=1,
            queues=[record.queue],
            task_events=True,
            without_gossip=True,
            without_mingle=True,
            loglevel="WARNING",
            quiet=True,
        )
    except ImportError as error:
        raise ConfigurationError(f"MODELYARD_WORKER_IMPORTS={','.join(imports)}: {error}") from error
    worker.start()
    if worker.exitcode:
        raise ServiceError(f"the Celery worker stopped with status {worker.exitcode}; see the log above")


def _connect_signals(record: WorkerRecord, heartbeat: Heartbeat, tell_ready: Callable[[], None]) -> None:
    """Publish the state of Celery's consumer as the worker's state."""

    def on_ready(**_: Any) -> None:
        heartbeat.set_state("ready")
        tell_ready()
        served = f"{record.model_name} / {record.model_version}"
        logger.info("worker %d serves %s on %s", record.worker, served, record.device)

    def on_shutting_down(**_: Any) -> None:
        heartbeat.set_state("draining")

    # A receiver of this signal makes Celery keep the process's logging configuration.
    signals.setup_logging.connect(_keep_logging)
    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_shutting_down, weak=False)


def node_name(record: WorkerRecord) -> str:
    """Celery's node name of a worker, with its model version: `digits-2@host-1234-5a6b7c8d`."""
    model = re.sub(r"[^\w.-]", "-", record.model_name, flags=re.ASCII)
    return f"{model}-{record.model_version}@{record.worker_id}"


def _log_file() -> tuple[int, int] | None:
    """Identity of the file to which log lines are written; None if it is closed."""
    with suppress(OSError):
        found = os.fstat(STANDARD_ERROR)
        return found.st_dev, found.st_ino
    return None


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Reconnects to Redis twice a second; Celery's own backoff grows to 30 s, long after Redis has returned.

    Attributes:
        log_file: Identity of standard error before the model ran.
    """

    log_file: tuple[int, int] | None = None

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect. Celery calls it for the first connection and after each connection loss.

        It ends a process whose model has closed its descriptors: a connection would become standard error, and each
        log line would be sent to Redis and break it.
        """
        if self.log_file and self.log_file != _log_file():
            leave(EX_SOFTWARE)
        connect, is_told = conn.ensure_connection, False

        def tell(error: Exception, interval_s: float) -> None:
            nonlocal is_told
            if not is_told:
                logger.warning("Redis refuses the consumer (%s); retrying", refusal(error) or error)
            is_told = True

        def connect_steadily(_: Any, *arguments: Any, **options: Any) -> Connection:
            options |= {"interval_start": RECONNECT_S, "interval_step": 0, "interval_max": RECONNECT_S}
            return connect(tell, *arguments, **options)

        conn.ensure_connection = connect_steadily
        return super().ensure_connected(conn)


def _keep_logging(**_: Any) -> None:
    """Receiver of Celery's `setup_logging` signal: logging is already configured."""
