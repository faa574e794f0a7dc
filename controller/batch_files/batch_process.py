"""The process that predicts the rows of one batch, as `modelyard batch` does: it calls its controller over HTTP.

It starts where an earlier process was stopped. It ends at once when its controller has ended, or the batch has.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import sys
import threading
import time
from pathlib import Path

import msgspec

from app.logs import configure_logging
from app.server_errors import ModelyardError, QueueFullError, RateLimitError, UnavailableError
from controller import background_process
from controller.batch_files.batch_folder import BatchFolder, Progress
from modelyard import AsyncClient
from modelyard.batch.batch_run import BatchPlan
from modelyard.batch.file_run import PATIENT, part_path_of, predict_rows, write_output
from modelyard.batch.part_file import PartFile
from modelyard.batch.sources import Source, open_source
from modelyard.schemas import JobProblem

MEMORY_BYTES = 2**30  # for the rows in hand, beside the program itself
CONCURRENCY = 8
NOTE_EVERY_S = 0.5
TRY_AGAIN = os.EX_TEMPFAIL


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """The instructions of a controller for its process.

    Attributes:
        folder: Folder of the batch.
        url: Address of the controller.
        api_key: Key that acts for the owner of the batch; empty without keys.
        deadline_s: Seconds until the job of a request expires.
        max_output_bytes: Largest size of the output, and of the journal of finished rows.
    """

    folder: str
    url: str
    api_key: str
    deadline_s: float
    max_output_bytes: int


def main() -> None:
    """Predict the batch that the first line of standard input names."""
    configure_logging()
    background_process.give_way()
    errand = msgspec.json.decode(sys.stdin.buffer.readline(), type=Errand)
    folder = BatchFolder(Path(errand.folder))
    threading.Thread(target=_end_with_controller, args=(folder,), daemon=True).start()
    background_process.limit_memory(MEMORY_BYTES)  # a hostile file may make the decoders take more
    limit_bytes = errand.max_output_bytes
    sys.dont_write_bytecode = True  # the limit would cut the files that Python keeps of imported modules
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    os.chdir(errand.folder)  # so that errors name the file alone
    try:
        asyncio.run(_predict(folder, errand))
    except (UnavailableError, QueueFullError, RateLimitError):
        sys.exit(TRY_AGAIN)
    except ModelyardError as error:
        _fail(folder, error.code, error.detail)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        reason = f"the output is larger than {limit_bytes} bytes (MODELYARD_BATCH_MAX_OUTPUT_BYTES)"
        _fail(
            folder,
            "batch_output_too_large",
            f"{reason}; send the file in parts, or have it written as Parquet",
        )
    except MemoryError:
        reason = f"the rows need more than {MEMORY_BYTES >> 20} MiB of memory; send fewer with `rows`"
        _fail(folder, "request_too_large", f"{reason}, or smaller row groups")


async def _predict(folder: BatchFolder, errand: Errand) -> None:
    asked = folder.request
    source = open_source(Path(folder.input.name))
    plan = BatchPlan(folder.id, asked.options, asked.params, asked.rows, CONCURRENCY, errand.deadline_s)  # type: ignore[arg-type]
    with PartFile(Path(part_path_of(folder.output).name), folder.id) as part:
        noted = _Noted(folder, source, part)
        async with AsyncClient(errand.url, api_key=errand.api_key, retry=PATIENT) as client:
            await predict_rows(client, source, part, plan, noted.tell)
        write_output(source, part, Path(folder.output.name))
    folder.end(msgspec.structs.replace(noted.progress(), status="succeeded", rows=part.n_rows, progress=1.0))


class _Noted:
    """Writes the progress into the folder."""

    def __init__(self, folder: BatchFolder, source: Source, part: PartFile) -> None:
        self._folder, self._source, self._part = folder, source, part
        self._n_before, self._began_s, self._noted_s = part.n_rows, time.monotonic(), 0.0

    def tell(self, n_rows: int) -> None:
        """Note the progress, if it was not noted just before."""
        if time.monotonic() - self._noted_s > NOTE_EVERY_S:
            self._noted_s = time.monotonic()
            self._folder.write_progress(self.progress())

    def progress(self) -> Progress:
        """The progress of the work."""
        part = self._part
        rate = (part.n_rows - self._n_before) / max(time.monotonic() - self._began_s, 0.001)
        return Progress(
            status="running",
            rows=self._source.n_rows,
            rows_done=part.n_rows,
            rows_failed=part.n_bad,
            rows_per_s=rate,
            progress=self._source.progress(),
        )


def _fail(folder: BatchFolder, code: str, detail: str) -> None:
    seen = folder.progress()
    folder.end(msgspec.structs.replace(seen, status="failed", error=JobProblem(code, detail)))


def _end_with_controller(folder: BatchFolder) -> None:
    """End this process when its controller closes the pipe, or the batch was cancelled. Finished rows are on disk."""
    while not select.select([sys.stdin], [], [], NOTE_EVERY_S)[0]:
        if folder.has_ended and folder.progress().status == "cancelled":
            break
    os._exit(0)


if __name__ == "__main__":
    main()
