"""Outcomes of batches that did not run: no worker took them in time, or their record is unreadable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.ledger import ids, wire
from app.ledger.wire import CANCELLED, BatchHead, BatchOutcome, JobEntry, JobOutcome
from app.redis import keys

UNKNOWN_POLICY = "unknown"
UNREADABLE = JobOutcome(
    "failed",
    error_code="record_unreadable",
    error_detail="the record of this job in Redis is damaged; submit the job again",
)


def closed_head(batch_id: str, queue: str, number: int) -> BatchHead:
    """A batch head derived from the batch's id and queue only."""
    name, version = keys.model_of(queue)
    accepted_at_ms = ids.accepted_at_ms(batch_id)
    job = JobEntry(0, accepted_at_ms, accepted_at_ms, UNKNOWN_POLICY, forced=False)
    return BatchHead(
        queue=queue,
        worker=number,
        reply_to="",
        model_name=name,
        model_version=version,
        val_accuracy=None,
        dtype="",
        sample_shape=(),
        jobs=[job] * ids.n_jobs(batch_id),
    )


def unreadable_outcome(
    head: BatchHead, fields: Iterable[bytes], now_ms: float, worker_id: str
) -> BatchOutcome:
    """The outcome of a batch whose record cannot be read: cancelled jobs stay cancelled, the others failed."""
    return _outcome(head, set(fields), UNREADABLE, now_ms, worker_id)


def overdue_outcome(head: BatchHead, fields: Mapping[bytes, bytes], now_ms: float) -> BatchOutcome:
    """The outcome of a batch that no worker took in time."""
    return _outcome(head, set(fields), wire.EXPIRED, now_ms, "")


def _outcome(
    head: BatchHead, fields: set[bytes], otherwise: JobOutcome, now_ms: float, worker_id: str
) -> BatchOutcome:
    return BatchOutcome(
        worker_id=worker_id,
        started_at_ms=now_ms,
        finished_at_ms=now_ms,
        inference_ms=0,
        n_samples=0,
        jobs=[CANCELLED if f"c:{i}".encode() in fields else otherwise for i in range(len(head.jobs))],
    )
