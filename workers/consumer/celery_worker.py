"""How a worker consumes: stock Celery, told that a message is only a wake-up and that its queue has one task.

The ledger knows what was claimed and finds what was lost, so nothing is acknowledged: that saves Redis two
round trips a message, and none of Celery's ways of giving a message back can run a batch twice.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from celery import Celery, bootsteps, signals
from celery.exceptions import SecurityWarning
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu import Connection, Queue

from app.celery_app import BATCH_TASK
from app.errors import ServiceError, first_line
from app.redis.refusals import refusal
from app.unreadable import Unreadable, What
from app.worker_record import WorkerRecord
from workers.batch_runner import BatchRunner, Ran
from workers.consumer import transport
from workers.consumer.remote_control import STRATEGY, only_batches
from workers.process.heartbeat import Heartbeat

logger = logging.getLogger(__name__)
EVENTS_FLUSH_S = 0.25
EVENTS_AT_ONCE = 32
RECONNECT_S = 0.5


def consume(
    celery: Celery,
    record: WorkerRecord,
    runner: BatchRunner,
    beacon: Heartbeat,
    tell_ready: Callable[[], None],
) -> None:
    """Run batches from the worker's queue until SIGTERM or SIGINT, which drain.

    Args:
        tell_ready: Called once the queue is consumed.

    Raises:
        ServiceError: Celery stopped for another reason.
    """

    @celery.task(name=BATCH_TASK, Strategy=STRATEGY)  # type: ignore[untyped-decorator]
    def run_batch(batch_id: str, on_begin: Callable[[str], None]) -> Iterator[Ran]:
        return runner.run_on(batch_id, on_begin)

    only_batches(celery)

    def on_ready(**_: Any) -> None:
        beacon.set_state("ready")
        tell_ready()
        served = f"{record.model_name} / {record.model_version}"
        logger.info("worker %d serves %s on %s", record.worker, served, record.device)

    def on_shutting_down(**_: Any) -> None:
        beacon.set_state("draining")

    unreadable = Unreadable()

    def on_garbage(what: What, error: Exception) -> None:
        unreadable.note(what, record.queue, f"dropped ({first_line(error)})")
        beacon.unreadable_seen()

    transport.use(record.queue, on_garbage, beacon.progress.note, lambda: beacon.silences)
    # Celery warns of root because it can unpickle; this worker accepts JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # A receiver here makes Celery leave the logging that the process has set up as it is.
    signals.setup_logging.connect(_keep_logging)
    signals.worker_ready.connect(on_ready)
    signals.worker_shutting_down.connect(on_shutting_down)
    celery.conf.task_queues = [Queue(record.queue, routing_key=record.queue, no_ack=True)]
    celery.steps["consumer"].add(GatheredEvents)
    worker = celery.Worker(
        hostname=f"worker-{record.worker}@{record.worker_id}",
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
    worker.start()
    if worker.exitcode:
        raise ServiceError(f"the Celery worker stopped with status {worker.exitcode}; see the log above")


class SteadyConsumer(Consumer):  # type: ignore[misc]
    """Tries to reach Redis twice a second; Celery's own waits grow to half a minute, long after it is back."""

    def ensure_connected(self, conn: Connection) -> Connection:
        """Called on the first connection and after each loss of it."""
        is_told = False

        def tell(error: Exception, interval_s: float) -> None:
            nonlocal is_told
            if not is_told:
                logger.warning(
                    "Redis does not serve the consumer (%s); trying until it does", refusal(error) or error
                )
            is_told = True

        conn.ensure_connection(
            tell,
            interval_start=RECONNECT_S,
            interval_step=0,
            interval_max=RECONNECT_S,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        return conn


class GatheredEvents(bootsteps.StartStopStep):  # type: ignore[misc]
    """Sends task events to Flower several tasks at a time: one publish a task is a fifth of a worker's time."""

    requires = ("celery.worker.consumer:Events",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Called on each connection: the dispatcher is a new one."""
        self.stop(consumer)
        consumer.event_dispatcher.on_send_buffered = None
        consumer.event_dispatcher.buffer_limit = EVENTS_AT_ONCE
        self._timer = consumer.timer.call_repeatedly(EVENTS_FLUSH_S, consumer.event_dispatcher.flush)

    def stop(self, consumer: Any) -> None:
        """Called when the connection is lost, and at the end."""
        if self._timer:
            self._timer.cancel()
            self._timer = None


def _keep_logging(**_: Any) -> None:
    """Celery asks who configures logging; we have."""
