"""Celery's view of a batch: one request per batch in Celery's state, signals and events.

Celery's default strategy cannot run further batches without a message, and costs 0.15 ms per batch
(docs/adr/0020-a-request-for-each-batch.md). This strategy creates Celery's own `Request` and calls its public methods.
Anyone with write access to Redis can put any message there. So only the batch's id of a message is used: no arguments,
no callbacks, no ETA.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import Celery, signals, states
from celery.worker import state
from celery.worker.request import Request
from kombu import Message
from kombu.utils.encoding import safe_repr

from app.ledger.ids import n_jobs
from app.worker_record import WorkerRecord
from workers.batch_runner import BatchRunner, Ran

STRATEGY = f"{__name__}:strategy"  # by name: a function as an attribute of the task would become a method
SHOWN_JOBS = 64  # as many as a monitor can show
KEPT_EVENTS = 20_000  # of the batches of some seconds; older ones are dropped while Redis is unreachable


class TaskEvents:
    """The events of the batches, until `workers.consumer.remote_control` sends them from its thread.

    Sending them takes twice as long as all other work for Celery, and a batch would wait for it.

    Args:
        queue: The worker's queue, which the events name.
    """

    def __init__(self, queue: str) -> None:
        self._of_queue = {"exchange": "", "routing_key": queue}
        self._pending: deque[tuple[Request, float, str, dict[str, Any]]] = deque(maxlen=KEPT_EVENTS)

    def note(self, request: Request, kind: str, **fields: Any) -> None:
        """Keep an event of a request, with the current time."""
        self._pending.append((request, time.time(), kind, fields))

    def send(self, dispatcher: Any) -> None:
        """Pass the events of a moment to Celery's event dispatcher, which publishes them in groups.

        Events noted meanwhile wait for the next call: with a backlog there are always some, and remote commands would
        never be answered.
        """
        for _ in range(len(self._pending)):
            request, at_s, kind, fields = self._pending.popleft()
            request.eventer = dispatcher
            if kind == "task-started":
                shown = {"name": request.name, "args": request.argsrepr, "kwargs": request.kwargsrepr}
                request.send_event("task-received", timestamp=at_s, **shown, **self._of_queue)
            request.send_event(kind, timestamp=at_s, **fields)


class CeleryBatches:
    """Runs a worker's batches and reports them to Celery.

    Args:
        task: Celery's task, which holds the runner, the worker record and the events.
        consumer: Celery's consumer.
    """

    def __init__(self, celery: Celery, task: Any, consumer: Any) -> None:
        self._celery = celery
        self._task = task
        self._consumer = consumer
        self._runner: BatchRunner = task.runner
        record: WorkerRecord = task.record
        self._served = {"model": record.model_name, "version": record.model_version}
        self._events: TaskEvents = task.events
        self._pid = os.getpid()
        self._wake_up = Message(delivery_info={"exchange": "", "routing_key": record.queue})
        self._is_pushed = False
        self._request: Any = None  # Celery's state holds only a weak reference

    def receive(self, message: Any, *_: Any) -> None:
        """Run the batch of a message, and the batches that follow it."""
        # `workers.consumer.transport` passes on only wake-up messages
        for ran in self._runner.run_chain(message.headers["id"], self._begin):
            self._end(ran)

    def _begin(self, batch_id: str) -> None:
        task, n_shown = self._task, min(n_jobs(batch_id), SHOWN_JOBS)
        arguments = self._served | {"jobs": [f"{batch_id}.{index}" for index in range(n_shown)]}
        self._request = request = Request(
            self._wake_up,
            app=self._celery,
            task=task,
            hostname=self._consumer.hostname,
            headers={"id": batch_id, "task": task.name, "argsrepr": "()", "kwargsrepr": repr(arguments)},
            body=((), arguments, {}),
            decoded=True,
        )
        signals.task_received.send(sender=self._consumer, request=request)
        request.on_accepted(self._pid, time.monotonic())  # counts it
        self._events.note(request, "task-started")
        self._is_pushed = bool(
            signals.task_prerun.receivers
            or signals.task_success.receivers
            or signals.task_failure.receivers
            or signals.task_postrun.receivers
        )
        if self._is_pushed:  # `task.request`, for receivers; it takes 18 µs
            task.push_request(request.request_dict)
        signals.task_prerun.send(sender=task, task_id=batch_id, task=task, args=(), kwargs=arguments)

    def _end(self, ran: Ran) -> None:
        task, request = self._task, self._request
        if ran.failure is None:
            signals.task_success.send(sender=task, result=ran.result)
            state.task_ready(request)
            self._events.note(request, "task-succeeded", result=ran.result, runtime=ran.took_s)
        else:
            self._fail(ran.failure)
        signals.task_postrun.send(
            sender=task,
            task_id=ran.batch_id,
            task=task,
            args=(),
            kwargs=request.kwargs,
            retval=ran.result,
            state=states.FAILURE if ran.failure else states.SUCCESS,
        )
        if self._is_pushed:
            task.pop_request()

    def _fail(self, error: Exception) -> None:
        request = self._request
        try:
            raise error  # an error that stands for quarantined jobs was never raised, and Celery needs a traceback
        except type(error):
            info = ExceptionInfo()
        signals.task_failure.send(
            sender=self._task,
            task_id=request.id,
            exception=error,
            args=(),
            kwargs=request.kwargs,
            traceback=error.__traceback__,
            einfo=info,
        )
        state.task_ready(request)  # not `on_failure`, which ends the worker if the model raised MemoryError
        self._events.note(request, "task-failed", exception=safe_repr(error), traceback=info.traceback)


def strategy(task: Any, celery: Celery, consumer: Any) -> Callable[..., None]:
    """Celery's strategy of the batch task."""
    return CeleryBatches(celery, task, consumer).receive
