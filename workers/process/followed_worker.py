"""The worker's side of an alias follower: reports the alias's version, tells what is wrong, and begins to drain."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from pathlib import Path

from app.redis import keys
from app.worker_record import WorkerRecord
from workers.model_lookup import Aliases
from workers.process import follower_files
from workers.process.drain import Drain
from workers.process.follower_files import Said, Told
from workers.process.heartbeat import Heartbeat

logger = logging.getLogger(__name__)
POLL_S = 0.5


class FollowedWorker:
    """The thread that listens to the follower.

    Args:
        folder: Folder that this worker and the follower share.
        told: The follower's first message.
        record: The worker's record.
        drain: Begun when the follower has started a successor.
    """

    def __init__(
        self,
        folder: Path,
        told: Told,
        record: WorkerRecord,
        heartbeat: Heartbeat,
        drain: Drain,
    ) -> None:
        self._folder = folder
        self._alias = told.alias
        self._shown = Told(told.alias, told.follower_pid)
        self._record = record
        self._heartbeat = heartbeat
        self._drain = drain
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
        while not self._closing.wait(POLL_S):
            told = follower_files.read(self._folder, Told)
            if not told:
                continue
            if told.successor:
                self._heartbeat.set_start_failure("", "")
                self._drain.begin(f"{self._alias} is version {told.successor} now, whose worker is ready")
                return
            if told != self._shown:
                self._show(told)
                self._shown = told

    def _show(self, told: Told) -> None:
        record, wrong = self._record, told.warning
        if told.failed_version:
            wrong = (
                f"version {told.failed_version}, which {self._alias} names now, is not served: {told.failure}"
            )
        if wrong:
            logger.warning("%s; version %d goes on serving", wrong, record.model_version)
        else:
            logger.info("version %d is the version of %s again", record.model_version, self._alias)
        failed_queue = told.failed_version and keys.queue_name(record.model_name, told.failed_version)
        self._heartbeat.set_start_failure(failed_queue or "", told.failure)
        self._heartbeat.set_warnings((*record.warnings, told.warning) if told.warning else record.warnings)
