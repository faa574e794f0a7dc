"""One worker process: resolve, load, warm up, publish, and only then consume."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from typing import Any
from uuid import uuid4

from celery import Celery, signals
from celery.exceptions import SecurityWarning
from kombu import Queue

from app import keys, ledger
from app.celery_app import BATCH_TASK, create_celery
from app.clock import PoolClock
from app.errors import ServiceError
from app.pool import WorkerRecord, assign_number
from app.settings import WorkerSettings
from workers import model
from workers.beacon import Beacon
from workers.task import BatchRunner

logger = logging.getLogger(__name__)


def run(settings: WorkerSettings) -> int:
    """Serve one model version until SIGTERM or SIGINT, which drain.

    Returns:
        Exit status: 0 after a drain.

    Raises:
        ModelError: The version does not exist or cannot be served.
        UnavailableError: MLflow or Redis does not answer.
        WorkerNumberTakenError: The number asked for is another version's.
    """
    client = ledger.connect(settings)
    with ledger.ledger_errors():
        client.ping()
    found = model.resolve(settings)
    queue = keys.queue_name(found.name, found.version)
    loaded = model.load(found, settings)
    with ledger.ledger_errors():
        number = assign_number(client, queue, settings.worker_number)
    record = WorkerRecord(
        worker_id=f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}",
        worker=number,
        queue=queue,
        model_name=found.name,
        model_version=found.version,
        run_id=found.run_id,
        val_accuracy=found.val_accuracy,
        input=loaded.contract,
        state="starting",
        started_at_ms=0,
        heartbeat_at_ms=0,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=loaded.device,
    )
    clock = PoolClock()
    beacon = Beacon(client, record, clock, settings.heartbeat_s)
    jobs = ledger.WorkerLedger(client, record.worker_id, queue, settings.result_retention_s)
    runner = BatchRunner(record.worker_id, jobs, loaded, beacon, clock, settings.max_attempts)
    beacon.start()
    try:
        return _consume(create_celery(settings), record, runner, beacon)
    finally:
        beacon.close()


def _consume(celery: Celery, record: WorkerRecord, runner: BatchRunner, beacon: Beacon) -> int:
    @celery.task(name=BATCH_TASK, bind=True)  # type: ignore[untyped-decorator]
    def run_batch(task: Any) -> str:
        return runner.run(task.request.id)

    def on_ready(**_: Any) -> None:
        beacon.set_state("ready")
        logger.info(
            "worker %d serves %s / %d on %s",
            record.worker,
            record.model_name,
            record.model_version,
            record.device,
        )

    def on_shutting_down(**_: Any) -> None:
        beacon.set_state("draining")

    # Celery warns of root because it can unpickle; this worker accepts JSON alone.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    # A receiver here makes Celery leave the logging that the process has set up as it is.
    signals.setup_logging.connect(_keep_logging)
    signals.worker_ready.connect(on_ready)
    signals.worker_shutting_down.connect(on_shutting_down)
    celery.conf.task_queues = [Queue(record.queue, routing_key=record.queue)]
    consumer = celery.Worker(
        hostname=f"worker-{record.worker}@{record.worker_id}",
        pool_cls="solo",
        concurrency=1,
        queues=[record.queue],
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        loglevel="WARNING",
        quiet=True,
    )
    consumer.start()
    if consumer.exitcode:
        raise ServiceError(f"the Celery worker stopped with status {consumer.exitcode}; see the log above")
    return 0


def _keep_logging(**_: Any) -> None:
    """Celery asks who configures logging; we have."""
