"""The folder of one batch: its request, its input, its progress, and its output.

A batch has ended when `ended.json` exists. Only one process can create that file: a cancellation and the end of the
work exclude each other. Until then `running.json` holds the progress; without it, the batch waits.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec

from app.whole_file import replace_file, write_beside
from modelyard.batch.file_run import part_path_of
from modelyard.batch.result_files import bad_path_of
from modelyard.schemas import BatchFile, BatchStatus, JobProblem

ENDED = "ended.json"


class BatchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request for a batch.

    Attributes:
        owner: Name of the API key that owns it; empty without keys.
        input: Suffix of the input's file name.
        output: Suffix of the output's file name.
        options: Selector of the version.
        params: Parameters of the version.
        rows: Rows in a request.
    """

    owner: str
    input: str
    output: str
    options: dict[str, Any]
    params: dict[str, Any] | None
    rows: int


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a batch; see `BatchFile`."""

    status: BatchStatus = "waiting"
    rows: int | None = None
    rows_done: int = 0
    rows_failed: int = 0
    rows_per_s: float = 0.0
    progress: float = 0.0
    error: JobProblem | None = None


class BatchFolder:
    """The folder of a batch, which exists.

    Attributes:
        id: Id of the batch.
        request: What the batch predicts, and how.
        input: File with the rows.
        output: File with the predictions, once it succeeded.
        bad: File with the rows that have none; it need not exist.

    Raises:
        FileNotFoundError: It does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.id = path, path.name
        self.request = msgspec.json.decode((path / "request.json").read_bytes(), type=BatchRequest)
        self.input = path / f"input{self.request.input}"
        self.output = path / f"output{self.request.output}"
        self.bad = bad_path_of(self.output)
        self._running, self._ended = path / "running.json", path / ENDED

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be done."""
        return self._ended.exists()

    @property
    def created_at_s(self) -> float:
        """When the batch was accepted, in s since the epoch."""
        return (self.path / "request.json").stat().st_mtime

    def ended_at_s(self) -> float | None:
        """When it ended, in s since the epoch."""
        with suppress(FileNotFoundError):
            return self._ended.stat().st_mtime
        return None

    def progress(self) -> Progress:
        """The progress of the batch."""
        for path in (self._ended, self._running):
            with suppress(FileNotFoundError):
                return msgspec.json.decode(path.read_bytes(), type=Progress)
        return Progress()

    def write_progress(self, progress: Progress) -> None:
        """Write the progress."""
        replace_file(self._running, msgspec.json.encode(progress))

    def end(self, progress: Progress) -> bool:
        """Write the end of the batch; False if it had ended before."""
        written = write_beside(self._ended, msgspec.json.encode(progress))
        try:
            os.link(written, self._ended)
        except FileExistsError:
            return False
        finally:
            written.unlink()
        return True

    def forget_rows(self) -> None:
        """Remove the input and the unfinished output."""
        for path in (self.input, part_path_of(self.output)):
            path.unlink(missing_ok=True)

    def lock(self) -> int | None:
        """A file descriptor that holds the right to work on the batch until it is closed; None if another holds it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def document(self, prefix: str) -> BatchFile:
        """The document of the HTTP API.

        Args:
            prefix: Path under which the API is published.
        """
        seen, ended_at_s, url = self.progress(), self.ended_at_s(), f"{prefix}/batches/{self.id}"
        is_readable = seen.status == "succeeded"
        return BatchFile(
            id=self.id,
            status=seen.status,
            batch_url=url,
            output_url=f"{url}/output" if is_readable else None,
            errors_url=f"{url}/errors" if is_readable else None,
            created_at_ms=round(self.created_at_s * 1000),
            ended_at_ms=round(ended_at_s * 1000) if ended_at_s else None,
            rows=seen.rows,
            rows_done=seen.rows_done,
            rows_failed=seen.rows_failed,
            rows_per_s=round(seen.rows_per_s, 1),
            progress=round(seen.progress, 4),
            error=seen.error,
        )


class Upload:
    """The folder of a batch whose input arrives; it becomes the batch's by `accept`.

    Args:
        folder: Folder of all batches.
    """

    PREFIX = "upload-"

    def __init__(self, folder: Path, request: BatchRequest) -> None:
        self._path = folder / f"{self.PREFIX}{uuid4().hex}"
        self._path.mkdir(mode=0o700)
        self._request = request
        self.file = (self._path / f"input{request.input}").open("wb")

    def accept(self, batch_id: str) -> BatchFolder:
        """Make it the folder of a batch; if there is one with this id, that one is returned."""
        os.fsync(self.file.fileno())
        self.file.close()
        (self._path / "request.json").write_bytes(msgspec.json.encode(self._request))
        accepted = self._path.with_name(batch_id)
        with suppress(OSError):  # it exists, and is not empty
            self._path.rename(accepted)
        return BatchFolder(accepted)

    def close(self) -> None:
        """Remove the upload, unless it was accepted."""
        self.file.close()
        shutil.rmtree(self._path, ignore_errors=True)
