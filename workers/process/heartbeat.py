"""Publishes the worker's record in Redis, each heartbeat and on each change."""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from app import start_failures
from app.clock import PoolClock
from app.ledger.marks import mark_loss
from app.redis.client import Client, RedisError, ledger_errors
from app.redis.refusals import refusal
from app.redis.script import run_now
from app.server_errors import ConfigurationError, QueueTakenError, WireError, WorkerNumberTakenError
from app.settings import HEARTBEATS_TO_LIVE
from app.worker_record import (
    WorkerRecord,
    WorkerState,
    assign_number,
    decode_record,
    identity,
    publish_record,
    withdraw_record,
)
from modelyard.schemas import Latency, StartFailure
from workers.model_lookup import Aliases
from workers.process import health
from workers.process.consumer_progress import Progress
from workers.process.in_flight_marker import InFlightMarker

logger = logging.getLogger(__name__)
PAGES = Path("/proc/self/statm")  # of this process: total, resident, …
WINDOW_BATCHES = 512
RECENT_BATCHES = 5  # one slow pass among them does not move their median
MOST_ALIASES = 1000  # limits the size of a record, which is written each second


def end_process() -> None:
    """End this process immediately: the main thread, which would end it in order, may be stuck."""
    os._exit(1)


class Heartbeat:
    """Publishes a worker's record from its own thread, so that a long forward pass does not stop the heartbeat.

    Args:
        client: Synchronous Redis client.
        record: The record to start from.
        clock: Updated with Redis's time by each heartbeat.
        heartbeat_s: Seconds between two records; the record expires after three.
        predecessor: Id of a dead worker of the same queue, or empty. Its record is removed when this worker's record
            exists, so that its batch is sent again; without any record, the queue would refuse jobs.
        on_stall: Called from that thread when the idle worker does not ask for work, or when another model has taken
            its queue; must end the worker.
        ready_file: File for the container's health check; kept while Redis has the record of the ready worker.
        marker: Knows how many serving processes in a row died; None if the worker has none.

    Attributes:
        progress: Updated by the consumer each time that it asks for a message.
        state: The worker's state; a draining worker gets no new jobs.
        takes_batches: Whether it takes further batches from its queue.
    """

    def __init__(
        self,
        client: Client,
        record: WorkerRecord,
        clock: PoolClock,
        heartbeat_s: float,
        *,
        predecessor: str = "",
        on_stall: Callable[[], None] = end_process,
        ready_file: Path | None = None,
        marker: InFlightMarker | None = None,
    ) -> None:
        self.progress = Progress(heartbeat_s)
        self._on_stall = on_stall
        self._failed_heartbeats = 0
        self._client = client
        self._ready_file = ready_file
        self._marker = marker
        self._record = record
        self.state = record.state
        self.takes_batches = True
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._predecessor = predecessor
        self._latencies_ms: deque[float] = deque(maxlen=WINDOW_BATCHES)
        self._samples: deque[int] = deque(maxlen=WINDOW_BATCHES)
        self._start_failures: dict[str, StartFailure] = {}
        self._over_failures: set[str] = set()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._changed = False
        self._closing = False
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Publish immediately, then each heartbeat.

        Raises:
            LedgerUnavailableError: Redis does not answer.
            QueueTakenError: Live workers serve another model of the same name and version.
            ConfigurationError: The ready file cannot be written.
        """
        if self._ready_file:
            try:
                health.tell_ready(str(self._ready_file), 0)
            except OSError as error:
                raise ConfigurationError(
                    f"MODELYARD_READY_FILE={self._ready_file} cannot be written: {error}"
                ) from None
        with ledger_errors():
            asked_at_s = time.monotonic()
            self._clock.adjust(self._client.time(), asked_at_s)
            self._change(started_at_ms=self._clock.now_ms())
            self._publish()
        self._thread.start()

    def set_state(self, state: WorkerState) -> None:
        """Change the state and publish it now. Safe in a signal handler, because the thread does the writing."""
        self.takes_batches = state != "draining"
        self._set(state)

    def leave_routing(self) -> None:
        """Get no new jobs, but go on taking the batches of the queue."""
        self._set("draining")

    def _set(self, state: WorkerState) -> None:
        self.state = state
        self._changed = True
        self._wake.set()

    def batch_started(self, batch_id: str) -> None:
        """Record the running batch."""
        self._change(running_batch=batch_id)

    def batch_ended(self, done: int, failed: int, n_samples: int, inference_ms: float) -> None:
        """Count a batch: jobs that succeeded and failed, samples and duration of the forward pass."""
        with self._lock:
            record = self._record
            if n_samples:
                self._latencies_ms.append(inference_ms)
                self._samples.append(n_samples)
            self._record = msgspec.structs.replace(
                record,
                running_batch="",
                jobs_done=record.jobs_done + done,
                jobs_failed=record.jobs_failed + failed,
                batches_done=record.batches_done + 1,
            )

    def aliases_read(self, aliases: Aliases, age_s: float) -> None:
        """Record the aliases of the model, which the registry had `age_s` seconds ago."""
        versions = dict(list(aliases.versions.items())[:MOST_ALIASES])
        if versions != self._record.aliases:
            self._changed = True
        read_at_ms = self._clock.now_ms() - age_s * 1000
        self._change(aliases=versions, newest_version=aliases.newest, aliases_read_at_ms=read_at_ms)

    def set_warnings(self, warnings: tuple[str, ...]) -> None:
        """Record faults that do not prevent serving."""
        self._changed = True
        self._change(warnings=warnings)

    def set_start_failure(self, queue: str, reason: str) -> None:
        """Record why the version that is wanted instead does not start; without a queue that it does, or is not wanted.

        Args:
            queue: Queue of that version.
            reason: Why its worker ended.
        """
        with self._lock:
            before, failures = self._start_failures, {}
            if queue:
                since_ms = before[queue].since_ms if queue in before else self._clock.now_ms()
                failures[queue] = StartFailure(reason, since_ms)
            self._start_failures = failures
            self._over_failures = (self._over_failures | before.keys()) - failures.keys()

    def failed_heartbeats(self) -> int:
        """Number of failed heartbeats; after each, any connection may be half-open."""
        return self._failed_heartbeats

    def unreadable_seen(self) -> None:
        """Count an unreadable record or message."""
        with self._lock:
            self._record = msgspec.structs.replace(self._record, unreadable=self._record.unreadable + 1)

    def close(self) -> None:
        """Stop publishing and remove the record; if Redis is unreachable, the record expires."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._heartbeat_s + 5)
        if self._ready_file:
            health.tell_not_ready(str(self._ready_file))
        self._try(self._withdraw, reachable=True)

    def _withdraw(self) -> None:
        withdraw_record(self._client, self._record.worker_id)

    def _change(self, **fields: Any) -> None:
        with self._lock:
            self._record = msgspec.structs.replace(self._record, **fields)

    def _beat(self) -> None:
        reachable = True
        while not self._closing:
            self._wake.wait(self._heartbeat_s)
            self._wake.clear()
            if self._closing:
                return
            try:
                reachable = self._try(self._publish, reachable)
            except (
                QueueTakenError
            ) as error:  # another model took the queue while this worker was disconnected
                logger.critical("%s; ending this worker", error.detail)
                self._on_stall()
                return
            if not reachable or self.state != "ready" or self._record.running_batch:
                self.progress.note()
            elif self.progress.has_stalled():
                logger.critical(
                    "the consumer no longer requests work although Redis answers; ending this worker"
                )
                self._try(self._withdraw, reachable)
                self._on_stall()
                return

    def _try(self, write: Callable[[], None], reachable: bool) -> bool:
        try:
            write()
        except (RedisError, OSError) as error:
            self._failed_heartbeats += 1
            if reachable:
                logger.warning(
                    "Redis does not accept the worker record (%s)%s",
                    refusal(error) or error,
                    "" if self._closing else "; retrying each heartbeat",
                )
            return False
        if not reachable:
            logger.info("Redis accepts the worker record again")
        return True

    def _publish(self) -> None:
        changed, self._changed = self._changed, False
        record = self._snapshot()
        asked_at_s = time.monotonic()
        ttl_ms = int(HEARTBEATS_TO_LIVE * self._heartbeat_s * 1000)
        call = publish_record(record, ttl_ms, changed=changed)
        seconds, microseconds, number, *other = run_now(self._client, call)
        if other:
            raise _taken(record, other[0])
        self._clock.adjust((int(seconds), int(microseconds)), asked_at_s)
        self._tell_start_failures()
        self._tell_health(record.state)
        if number is None:
            self._register_again(record)
        if self._predecessor and record.state == "ready":
            withdraw_record(self._client, self._predecessor)
            self._predecessor = ""

    def _tell_start_failures(self) -> None:
        with self._lock:
            failures, over, self._over_failures = self._start_failures, self._over_failures, set()
        if failures or over:
            with suppress(RedisError):  # it is full, or its users are of an older release
                start_failures.write(self._client, failures, over, self._clock.now_ms())

    def _tell_health(self, state: WorkerState) -> None:
        if not self._ready_file:
            return
        if state != "ready":
            health.tell_not_ready(str(self._ready_file))
            return
        # A full disk must not stop the heartbeat: only the container becomes unhealthy.
        with suppress(OSError):
            health.tell_ready(str(self._ready_file), HEARTBEATS_TO_LIVE * self._heartbeat_s)

    def _register_again(self, record: WorkerRecord) -> None:
        """Register again after Redis lost its data, with the queue's former worker number."""
        try:
            number = assign_number(self._client, record.queue, record.worker)
        except WorkerNumberTakenError:
            number = assign_number(self._client, record.queue, None)
        self._change(worker=number)
        self._changed = True
        logger.warning("Redis lost its data; worker %d is registered again", number)
        with suppress(RedisError):  # it is full, or its users are of an older release
            mark_loss(self._client, record.heartbeat_at_ms)

    def _snapshot(self) -> WorkerRecord:
        with self._lock:
            record = msgspec.structs.replace(
                self._record,
                state=self.state,
                heartbeat_at_ms=self._clock.now_ms(),
                memory_bytes=resident_bytes(),
                deaths_in_a_row=self._marker.n_deaths if self._marker else 0,
            )
            latencies, samples = list(self._latencies_ms), list(self._samples)
        if not latencies:
            return record
        p50, p99 = np.percentile(latencies, (50, 99))
        recent_ms = float(np.median(latencies[-RECENT_BATCHES:]))
        return msgspec.structs.replace(
            record,
            batch_samples_last=samples[-1],
            batch_samples_mean=round(sum(samples) / len(samples), 2),
            inference_ms=Latency(round(latencies[-1], 3), round(float(p50), 3), round(float(p99), 3)),
            recent_pass_ms=round(recent_ms, 3),
        )


def resident_bytes() -> int:
    """Resident memory of this process; 0 if the system does not tell."""
    try:
        return int(PAGES.read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _taken(record: WorkerRecord, data: bytes) -> QueueTakenError:
    try:
        holder = identity(decode_record(data))
    except WireError:
        holder = "a worker whose record cannot be read"
    return QueueTakenError(
        f"{record.model_name} / {record.model_version} is served by {holder}; this worker would serve "
        f"{identity(record)} under the same name. Stop those workers first, register the model under another "
        f"name, or use a separate Redis for each pool"
    )
