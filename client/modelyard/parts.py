"""Cuts samples that are larger than a request may be, and joins the outcomes of the parts in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from modelyard.client_errors import OutputsNotJoinableError
from modelyard.errors import TooLargeError
from modelyard.inputs import Encoded, Input
from modelyard.schemas import Job, Status

ORDER: tuple[Status, ...] = ("failed", "expired", "cancelled", "queued", "running", "succeeded")
LARGEST_TRIED_BYTES = 64 * 2**20  # larger bodies are cut before the controller has told its limit
MARGIN = 0.9  # of the size that rows of equal size would have


@dataclass
class Limits:
    """The largest request of a controller, as far as its refusals have told it.

    Attributes:
        max_body_bytes: Largest body; None if unknown.
        max_samples: Most rows; None if unknown.
    """

    max_body_bytes: int | None = None
    max_samples: int | None = None

    def learn(self, error: TooLargeError, part: Part) -> None:
        """Take the limits from a refusal; one that tells none, or has others, halves the size of the part."""
        self.max_body_bytes = error.max_body_bytes or self.max_body_bytes
        self.max_samples = error.max_samples or self.max_samples
        if self.allow(part):
            self.max_samples = part.n_rows // 2

    def allow(self, part: Part) -> bool:
        """Whether a part is within the limits, or cannot be made smaller."""
        is_small = len(part.encoded.body) <= (self.max_body_bytes or LARGEST_TRIED_BYTES)
        return part.n_rows < 2 or (is_small and part.n_rows <= (self.max_samples or part.n_rows))

    def rows(self, part: Part) -> int:
        """Rows that a part in the place of this one may have."""
        n_rows, size = part.n_rows, len(part.encoded.body)
        largest = self.max_body_bytes or LARGEST_TRIED_BYTES
        if size > largest:
            n_rows = int(n_rows * MARGIN * largest / size)
        return max(1, min(n_rows, self.max_samples or n_rows, part.n_rows - 1))


class Part(NamedTuple):
    """Consecutive rows.

    Attributes:
        start: Place of the first row.
        stop: Place behind the last row.
    """

    start: int
    stop: int
    encoded: Encoded

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


def next_part(given: Input, start: int, n_rows: int, limits: Limits) -> Part:
    """The rows from `start` on, at most `n_rows` and as many as the limits allow."""
    part = _part(given, start, min(n_rows, limits.max_samples or n_rows))
    while not limits.allow(part):
        part = _part(given, start, limits.rows(part))
    return part


def _part(given: Input, start: int, n_rows: int) -> Part:
    stop = min(start + n_rows, given.n_rows)
    return Part(start, stop, given.encode(start, stop))


class JoinedJob(Job, frozen=True, kw_only=True):
    """Several jobs that are parts of one: their predictions and outputs joined in order.

    Its id and times are those of the first part; `inference_ms`, `batch_samples` and `end_to_end_ms` are sums and the
    longest.

    Attributes:
        parts: The jobs, in the order of the rows.
        part_rows: Number of rows of each.
    """

    parts: tuple[Job, ...] = ()
    part_rows: tuple[int, ...] = ()


def join(jobs: Sequence[Job], n_rows: Sequence[int]) -> Job:
    """One job of the parts; the only part itself.

    Args:
        n_rows: Number of rows of each part.

    Raises:
        OutputsNotJoinableError: A part has another number of outputs than rows: cut samples have other outputs.
    """
    [first, *others] = jobs
    if not others:
        return first
    fields = {name: getattr(first, name) for name in Job.__struct_fields__}
    fields |= {
        "status": min((job.status for job in jobs), key=ORDER.index),
        "parts": tuple(jobs),
        "part_rows": tuple(n_rows),
    }
    if not all(map(has_outcome, jobs)):
        return JoinedJob(**fields)
    predictions = [each for job in jobs for each in job.predictions]
    outputs = [job.raw_outputs for job in jobs]
    for job, rows in zip(jobs, n_rows, strict=True):
        counts = {len(each) for each in _lists(job.raw_outputs)} | (
            {len(job.predictions)} if job.predictions else set()
        )
        if counts != {rows} and job.status == "succeeded":
            raise OutputsNotJoinableError(
                f"{job.model_name} version {job.model_version} does not answer a row for each row, so samples that "
                f"were cut into {len(jobs)} requests cannot be answered as one; send fewer samples at a time, or raise "
                "the controller's MODELYARD_MAX_SAMPLES and MODELYARD_MAX_BODY_BYTES"
            )
    return JoinedJob(
        **fields
        | {
            "predictions": tuple(predictions),
            "raw_outputs": _joined(outputs),
            "inference_ms": _sum([job.inference_ms for job in jobs]),
            "batch_samples": _sum([job.batch_samples for job in jobs]),
            "end_to_end_ms": max((job.end_to_end_ms or 0 for job in jobs), default=None),
            "error": next((job.error for job in jobs if job.error), None),
        }
    )


def has_outcome(job: Job) -> bool:
    """Whether it holds its outcome: the answer to a repeated post may only say that there is one."""
    has_answer = bool(job.predictions) or job.raw_outputs is not None
    return job.done and (has_answer or job.error is not None or job.status in ("expired", "cancelled"))


def _lists(outputs: Any) -> list[list[Any]]:
    """The lists that have an item for each row."""
    if isinstance(outputs, dict):
        return [each if isinstance(each, list) else [] for each in outputs.values()]
    return [] if outputs is None else [outputs if isinstance(outputs, list) else []]


def _joined(outputs: list[Any]) -> Any:
    if isinstance(outputs[0], dict):
        return {name: [row for each in outputs for row in each[name]] for name in outputs[0]}
    return None if outputs[0] is None else [row for each in outputs for row in each]


def _sum(values: list[Any]) -> Any:
    return sum(each or 0 for each in values)
