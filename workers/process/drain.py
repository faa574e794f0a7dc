"""The drain: a worker that has left the routing for good finishes its queue, and ends by itself with status 0.

Status 0 tells process managers that restart failed processes to leave it alone. There are three reasons: SIGUSR2, a
successor that an alias follower has started, and an operator who retired the version. The last one can be taken back.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time

from app.redis.client import Client, ledger_errors
from app.redis.refusals import refusal
from app.server_errors import LedgerUnavailableError, WireError
from app.version_controls import retirement
from app.worker_record import WorkerRecord, has_other_ready_worker, open_jobs
from workers.process.heartbeat import Heartbeat
from workers.process.in_flight_marker import InFlightMarker

logger = logging.getLogger(__name__)
POLL_S = 0.5
REFUSED_S = 60.0  # between two questions that Redis refuses
SIGNALLED = "it was told to by SIGUSR2"


class Drain:
    """The thread that looks for a reason to leave, and then ends the worker once its queue is empty.

    Args:
        record: The worker's record.
        marker: Knows whether the worker was told to leave by SIGUSR2, also before its serving process was forked.
        client: Used by this thread alone.
        quiet_s: Seconds for which the queue must be empty. Controllers that have not yet heard that the worker drains
            still send jobs.
    """

    def __init__(
        self,
        record: WorkerRecord,
        heartbeat: Heartbeat,
        marker: InFlightMarker,
        client: Client,
        quiet_s: float,
    ) -> None:
        self._record = record
        self._heartbeat = heartbeat
        self._marker = marker
        self._client = client
        self._quiet_s = quiet_s
        self._why = ""
        self._retired = ""
        self._ask_at_s = 0.0
        self._is_leaving = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="drain", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()

    def begin(self, why: str) -> None:
        """Leave the routing for good."""
        self._why = why

    def _watch(self) -> None:
        empty_since_s = math.inf
        while not self._closing.wait(POLL_S):
            if self._heartbeat.state == "starting":  # a restarted process becomes ready first
                continue
            if not self._heartbeat.takes_batches:  # it was told to stop
                return
            final = self._why or (SIGNALLED if self._marker.is_leaving else "")
            self._obey(final or self._retirement())
            ends = self._is_leaving and bool(final or not self._record.follows)
            if not ends or not self._is_queue_empty():
                empty_since_s = math.inf
                continue
            empty_since_s = min(empty_since_s, time.monotonic())
            if time.monotonic() - empty_since_s >= self._quiet_s:
                os.kill(os.getppid(), signal.SIGTERM)  # the supervisor, which ends with this process
                return

    def _obey(self, why: str) -> None:
        """Leave the routing, or return to it."""
        if bool(why) == self._is_leaving:
            return
        self._is_leaving = bool(why)
        version = f"{self._record.model_name} / {self._record.model_version}"
        if not why:
            logger.info("%s is in service again", version)
            self._heartbeat.set_state("ready")
            return
        then = "finishes its queue and ends"
        if why == self._retired and self._record.follows:  # the worker reads the alias
            then = f"gets no jobs until it is enabled, and ends when {self._record.follows} has moved"
        logger.info("%s leaves the routing, because %s; this worker %s", version, why, then)
        self._heartbeat.leave_routing()

    def _retirement(self) -> str:
        """Why operators have retired the version; empty if they have not. While Redis is away, the last answer."""
        if time.monotonic() >= self._ask_at_s:
            try:
                with ledger_errors():
                    control = retirement(self._client, self._record.queue)
            except LedgerUnavailableError as error:
                if said := refusal(error):
                    self._ask_at_s = time.monotonic() + REFUSED_S
                    logger.warning("Redis does not tell whether the version is retired (%s)", said)
            else:
                self._retired = f"its version is {control}" if control else ""
        return self._retired

    def _is_queue_empty(self) -> bool:
        """Whether no job waits for this worker; jobs that other workers of the queue can run do not."""
        try:
            with ledger_errors():
                jobs = open_jobs(self._client, self._record.queue)
                return not jobs or has_other_ready_worker(self._client, self._record)
        except (LedgerUnavailableError, WireError, ValueError):
            return False
