"""Receives batches into a folder, and has each predicted by a process of its own, one after the other.

The folder holds everything: a controller that was stopped or killed continues its batches when it starts again, and
controllers that share the folder share its batches. The process calls its controller over HTTP like any client, with a
key that is lent for this purpose. So keys, limits and routing apply, and the work does not burden the event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

import msgspec

from app.server_errors import (
    BatchNotCancellableError,
    BatchWithoutOutputError,
    ConfigurationError,
    IdempotencyConflictError,
    InputEmptyError,
    QueueFullError,
    TooLargeError,
    UnavailableError,
    UnknownBatchError,
)
from app.settings import ControllerSettings
from controller.admission.authentication import Access, Caller
from controller.batch_files import batch_process
from controller.batch_files.batch_folder import ENDED, BatchFolder, BatchRequest, Progress, Upload
from modelyard.batch.batch_run import DEADLINE_S
from modelyard.schemas import JobProblem

logger = logging.getLogger(__name__)

WAIT_EVERY_S = 0.25
WRITE_BYTES = 2**20
UPLOADS, UNFINISHED = 4, 100  # at most: arriving at the same time, and not ended
ABANDONED_S = 86400.0  # an upload whose controller was killed
TRIES = 3  # of a process that ends without a reason
ANYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
# Each thread of a decoder would reserve memory of its own, and take a core from the controller.
ONE_THREAD = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
ID = re.compile(r"[0-9a-f]{32}")


@dataclass
class _Running:
    folder: BatchFolder
    process: subprocess.Popen[bytes]
    lock: int
    api_key: str
    counted: Progress


@dataclass
class BatchFigures:
    """The figures for the metrics.

    Attributes:
        by_status: Batches in the folder that have not ended, by status.
        predicted: Rows that this controller's processes have predicted.
        failed: Rows that they have set aside.
    """

    by_status: Counter[str] = field(default_factory=Counter)
    predicted: int = 0
    failed: int = 0


class BatchStore:
    """The batches of a controller.

    Args:
        settings: They name the folder.
        access: Lends keys for the processes.

    Attributes:
        figures: The figures for the metrics.
    """

    def __init__(self, settings: ControllerSettings, access: Access) -> None:
        assert settings.batch_folder
        self._folder, self._settings, self._access = settings.batch_folder, settings, access
        self._running: dict[str, _Running] = {}
        self._tries: dict[str, int] = {}
        self._ended: set[str] = set()  # their rows were removed
        self._n_uploads = 0
        self._has_arrived = asyncio.Event()
        self._is_closed = False
        self.figures = BatchFigures()

    async def run(self) -> None:
        """Start and watch the processes, and remove old batches; runs until cancelled."""
        trouble = ""
        while not self._is_closed:
            try:
                await asyncio.to_thread(self._look)
                trouble = ""
            except OSError as error:
                if str(error) != trouble:
                    logger.error("the folder of batches cannot be used: %s", error)
                trouble = str(error)
            self._has_arrived.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_arrived.wait(), self._settings.heartbeat_s)

    def close(self) -> None:
        """End the processes; the next controller continues their batches."""
        self._is_closed = True
        for running in list(self._running.values()):
            running.process.kill()
            running.process.wait()

    async def receive(
        self, request: BatchRequest, parts: AsyncIterator[bytes], key: str, on_part: Callable[[], object]
    ) -> BatchFolder:
        """Store a batch.

        Args:
            parts: The file.
            key: Idempotency key, or empty: a repeated request gets the first one's batch.
            on_part: Called whenever a part was stored.

        Raises:
            QueueFullError: Too many files arrive, or too many batches have not ended.
            TooLargeError: The file is larger than it may be.
            InputEmptyError: The file is empty.
            UnavailableError: The file cannot be stored.
            IdempotencyConflictError: The key was used for another request.
        """
        if self._n_uploads >= UPLOADS or len(await asyncio.to_thread(self._unfinished)) >= UNFINISHED:
            raise QueueFullError(
                f"{UPLOADS} files arrive, or {UNFINISHED} batches wait; try again later", retry_after_s=10
            )
        self._n_uploads += 1
        try:
            upload = await asyncio.to_thread(Upload, self._folder, request)
            try:
                await self._store(upload, parts, on_part)
                named = hashlib.sha256(msgspec.json.encode((request.owner, key))).hexdigest()[:32]
                accepted = await asyncio.to_thread(upload.accept, named if key else uuid4().hex)
            finally:
                await asyncio.to_thread(upload.close)
        except OSError as error:
            raise UnavailableError(f"the controller cannot store the file: {error.strerror}") from error
        finally:
            self._n_uploads -= 1
        if accepted.request != request:
            raise IdempotencyConflictError("the Idempotency-Key belongs to a batch of another kind")
        self._has_arrived.set()
        return accepted

    async def _store(
        self, upload: Upload, parts: AsyncIterator[bytes], on_part: Callable[[], object]
    ) -> None:
        limit_bytes, size, held = self._settings.batch_max_bytes, 0, bytearray()
        async for part in parts:
            size += len(part)
            if size > limit_bytes:
                raise too_large(limit_bytes)
            held += part
            if len(held) >= WRITE_BYTES:
                await asyncio.to_thread(upload.file.write, held)
                held = bytearray()
                on_part()
        if not size:
            raise InputEmptyError("the body is empty; expected a file of rows")
        await asyncio.to_thread(upload.file.write, held)

    def find(self, batch_id: str, caller: Caller) -> BatchFolder:
        """The folder of a batch.

        Raises:
            UnknownBatchError: There is none of this id, or it is another caller's.
        """
        if ID.fullmatch(batch_id):
            with suppress(FileNotFoundError):
                found = BatchFolder(self._folder / batch_id)
                if caller.may_read(found.request.owner):
                    return found
        raise UnknownBatchError(
            f"no batch has the id {batch_id[:64]}; batches are kept for {self._settings.batch_retention_s:g} s after "
            "their end"
        )

    def of_caller(self, caller: Caller, limit: int) -> list[BatchFolder]:
        """The batches that a caller may read, newest first."""
        found = []
        for path in filter(lambda each: ID.fullmatch(each.name), self._folder.iterdir()):
            with suppress(FileNotFoundError):  # it has just been removed
                folder = BatchFolder(path)
                if caller.may_read(folder.request.owner):
                    found.append((folder.created_at_s, folder))
        return [folder for _, folder in sorted(found, key=itemgetter(0), reverse=True)[:limit]]

    async def wait(self, folder: BatchFolder, wait_s: float) -> None:
        """Return when the batch has ended, or after `wait_s` seconds."""
        ends_at_s = asyncio.get_running_loop().time() + wait_s
        while not folder.has_ended:  # which another process says by a file
            left_s = ends_at_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            await asyncio.sleep(min(WAIT_EVERY_S, left_s))

    def cancel(self, folder: BatchFolder) -> None:
        """End a batch; jobs that were sent go on.

        Raises:
            BatchNotCancellableError: It has ended.
        """
        if not folder.end(msgspec.structs.replace(folder.progress(), status="cancelled")):
            raise BatchNotCancellableError("the batch has ended; its output can be read until it is removed")

    def _look(self) -> None:
        for batch_id in [each for each, one in self._running.items() if one.process.poll() is not None]:
            self._finish(self._running.pop(batch_id))
        for running in self._running.values():
            self._count(running)
        waiting = self._unfinished()
        self.figures.by_status = Counter(each.progress().status for each in waiting)
        for folder in sorted(waiting, key=lambda each: each.created_at_s):
            if len(self._running) >= self._settings.batch_processes or self._is_closed:
                return
            if folder.id not in self._running:
                self._start(folder)

    def _unfinished(self) -> list[BatchFolder]:
        """The batches that have not ended; old ones that have are removed."""
        found = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another controller has removed it
                if path.name.startswith(Upload.PREFIX):
                    _remove_after(ABANDONED_S, path, path)
                elif path.name in self._ended:
                    _remove_after(self._settings.batch_retention_s, path / ENDED, path)
                elif ID.fullmatch(path.name):
                    folder = BatchFolder(path)
                    if not folder.has_ended:
                        found.append(folder)
                        continue
                    self._ended.add(path.name)
                    folder.forget_rows()
        return found

    def _start(self, folder: BatchFolder) -> None:
        lock = folder.lock()
        if lock is None:  # another controller, or a process that just ends
            return
        settings, api_key = self._settings, self._access.lend(folder.request.owner)
        host = ANYWHERE.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
        errand = batch_process.Errand(
            folder=str(folder.path),
            url=f"http://{host}:{settings.port}",
            api_key=api_key,
            deadline_s=min(DEADLINE_S, settings.max_deadline_s),
            max_output_bytes=settings.batch_max_output_bytes,
        )
        process = subprocess.Popen(  # noqa: S603  # no input of a caller's
            [sys.executable, "-m", batch_process.__name__],
            stdin=subprocess.PIPE,
            pass_fds=[lock],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._running[folder.id] = _Running(folder, process, lock, api_key, folder.progress())
        assert process.stdin
        with suppress(BrokenPipeError):  # it ended at once
            process.stdin.write(msgspec.json.encode(errand) + b"\n")
            process.stdin.flush()
        if self._is_closed:
            process.kill()

    def _finish(self, running: _Running) -> None:
        """Clean up after a process; a batch whose process ended several times without a reason has failed."""
        self._count(running)
        folder, status = running.folder, running.process.returncode
        self._access.revoke(running.api_key)
        os.close(running.lock)
        assert running.process.stdin
        with suppress(OSError):
            running.process.stdin.close()
        if folder.has_ended or status == batch_process.TRY_AGAIN:
            self._tries.pop(folder.id, None)
            return
        tries = self._tries[folder.id] = self._tries.get(folder.id, 0) + 1
        logger.error("the process of batch %s ended with status %d", folder.id, status)
        if tries >= TRIES:
            error = JobProblem(
                "batch_process_ended", f"its process ended {tries} times, the last time with status {status}"
            )
            folder.end(msgspec.structs.replace(folder.progress(), status="failed", error=error))

    def _count(self, running: _Running) -> None:
        """Count the rows that were finished since the last look."""
        before, now = running.counted, running.folder.progress()
        n_failed = max(now.rows_failed - before.rows_failed, 0)
        self.figures.predicted += max(now.rows_done - before.rows_done - n_failed, 0)
        self.figures.failed += n_failed
        running.counted = now


def _remove_after(age_s: float, dated: Path, folder: Path) -> None:
    if time.time() - dated.stat().st_mtime > age_s:
        shutil.rmtree(folder, ignore_errors=True)


def too_large(limit_bytes: int) -> TooLargeError:
    """The refusal of a file that is larger than it may be."""
    return TooLargeError(
        f"the file is larger than {limit_bytes} bytes (MODELYARD_BATCH_MAX_BYTES); send it in parts"
    )


def readable(folder: BatchFolder, path: Path) -> Path:
    """A file of the output.

    Raises:
        BatchWithoutOutputError: The batch has not succeeded.
    """
    status = folder.progress().status
    if status != "succeeded":
        raise BatchWithoutOutputError(f"the batch is {status}; a batch that succeeded has an output")
    return path


def open_batches(settings: ControllerSettings, access: Access) -> BatchStore | None:
    """The batches; None if the settings name no folder."""
    return BatchStore(settings, access) if settings.batch_folder else None


def check_folder(folder: Path | None) -> None:
    """Make the folder of batches before the start.

    Raises:
        ConfigurationError: It cannot be made, or files in it cannot be written.
    """
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f"{Upload.PREFIX}{uuid4().hex}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ConfigurationError(
            f"MODELYARD_BATCH_FOLDER={folder} cannot be written ({error.strerror}); name a folder that the controller "
            "may write to"
        ) from None
