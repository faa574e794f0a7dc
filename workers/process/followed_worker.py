"""The worker's side of an alias follower: tells which version the alias names, shows warnings, and drains the queue."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import cast

from app.errors import LedgerUnavailableError, WireError
from app.redis import keys
from app.redis.client import Client, ledger_errors
from app.worker_record import WorkerRecord, has_other_ready_worker
from workers.model_lookup import Aliases
from workers.process import follower_files
from workers.process.follower_files import Said, Told
from workers.process.heartbeat import Heartbeat

logger = logging.getLogger(__name__)
POLL_S = 0.5


class FollowedWorker:
    """The thread that hears the follower.

    Args:
        folder: Folder that this worker and the follower share.
        alias: The alias that is followed, or `latest`.
        record: The worker's record.
        client: Used by this thread alone.
        quiet_s: Seconds for which the queue of a draining worker must be empty. Controllers that have not yet heard
            that it drains still send jobs.
    """

    def __init__(
        self,
        folder: Path,
        alias: str,
        record: WorkerRecord,
        heartbeat: Heartbeat,
        client: Client,
        quiet_s: float,
    ) -> None:
        self._folder = folder
        self._alias = alias
        self._record = record
        self._heartbeat = heartbeat
        self._client = client
        self._quiet_s = quiet_s
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="followed", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()

    def aliases_read(self, aliases: Aliases) -> None:
        """Tell the follower which version its alias names."""
        with suppress(OSError):  # the follower has ended
            follower_files.write(
                self._folder, Said(self._record.model_version, aliases.version_of(self._alias))
            )

    def _listen(self) -> None:
        warning = ""
        while not self._closing.wait(POLL_S):
            told = follower_files.read(self._folder, Told)
            if not told:
                continue
            if told.successor and self._heartbeat.state == "ready":  # a restarted process becomes ready first
                self._drain(told.successor)
                return
            if told.warning != warning and not told.successor:
                warning = told.warning
                self._warn(warning)

    def _warn(self, warning: str) -> None:
        record = self._record
        if warning:
            logger.warning("%s; version %d goes on serving", warning, record.model_version)
        else:
            logger.info("version %d is the version of %s again", record.model_version, self._alias)
        self._heartbeat.set_warnings((*record.warnings, warning) if warning else record.warnings)

    def _drain(self, successor: int) -> None:
        record = self._record
        logger.info(
            "%s of %s is version %d now, whose worker is ready; version %d finishes its queue and stops",
            self._alias,
            record.model_name,
            successor,
            record.model_version,
        )
        self._heartbeat.leave_routing()
        empty_since_s = math.inf
        while time.monotonic() - empty_since_s < self._quiet_s:
            if self._closing.wait(POLL_S):
                return
            if not self._is_queue_empty():
                empty_since_s = math.inf
            elif empty_since_s == math.inf:
                empty_since_s = time.monotonic()
        os.kill(os.getppid(), signal.SIGTERM)  # the supervisor, which ends with this process

    def _is_queue_empty(self) -> bool:
        """Whether no job waits for this worker; jobs that other workers of the queue can run do not."""
        try:
            with ledger_errors():
                backlog_jobs = int(
                    cast(bytes | None, self._client.hget(keys.BACKLOG, self._record.queue)) or 0
                )
                return backlog_jobs <= 0 or has_other_ready_worker(self._client, self._record)
        except (LedgerUnavailableError, WireError, ValueError):
            return False
