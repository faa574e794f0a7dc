"""Predicts a whole file: `modelyard batch` and the batch process of a controller both call this."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

from modelyard.batch.batch_run import BatchPlan, BatchRun
from modelyard.batch.part_file import PartFile
from modelyard.batch.result_files import write_results
from modelyard.batch.sources import Images, Source
from modelyard.http import AsyncClient
from modelyard.retries import RetryPolicy

COLLECT_AFTER = 10_000  # new containers; a row's outputs are a list, kept until its chunk is written
PATIENT = RetryPolicy(attempts=40, max_backoff_s=10)  # for some minutes without a controller or a worker


async def predict_rows(
    client: AsyncClient, source: Source, part: PartFile, plan: BatchPlan, tell: Callable[[int], object]
) -> None:
    """Predict the rows that the part file does not have yet; see `BatchRun`. Tunes this process's garbage collector.

    Args:
        client: A client with the policy `PATIENT`.
        tell: Called with the number of rows whenever some are finished.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    await BatchRun(client, source, part, plan, tell).run()


def write_output(source: Source, part: PartFile, output: Path) -> Path | None:
    """Write the output of a part file that has all rows, and remove the part file.

    Returns:
        The file with the rows that were set aside; None if there is none.
    """
    names = source.names if isinstance(source, Images) else None
    bad = write_results(part, output, names)
    part.path.unlink()
    return bad


def part_path_of(output: Path) -> Path:
    """The part file of an output."""
    return output.with_name(output.name + ".part")
