"""The worker's spans: `run` in the trace of each job, linked to the other jobs of its batch."""

from __future__ import annotations

from app.ledger import ids
from app.ledger.wire import BatchOutcome
from app.ledger.worker_ledger import ClaimedBatch
from app.settings import WorkerSettings
from app.tracing import Tracing


class BatchTraces:
    """Writes the spans."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self.close = tracing.close

    def ran(self, batch: ClaimedBatch, outcome: BatchOutcome) -> None:
        """Write the spans of a batch that has its outcome."""
        head = batch.head
        for index, trace in enumerate(head.traces):
            if not trace:
                continue
            attributes: dict[str, str | int | float] = {
                "modelyard.job_id": ids.job_id(batch.batch_id, index),
                "modelyard.batch_id": batch.batch_id,
                "modelyard.model": head.model_name,
                "modelyard.version": head.model_version,
                "modelyard.worker_id": outcome.worker_id,
                "modelyard.status": outcome.jobs[index].status,
                "modelyard.batch_samples": outcome.n_samples,
                "modelyard.inference_ms": outcome.inference_ms,
            }
            others = [each for each in head.traces if each and each != trace]
            start_ms, end_ms = outcome.started_at_ms, outcome.finished_at_ms
            self._tracing.span("run", trace, start_ms, end_ms, attributes, others)


def open_traces(settings: WorkerSettings) -> BatchTraces | None:
    """The traces of a worker; None if they are off.

    Raises:
        ConfigurationError: A package is missing.
    """
    return BatchTraces(Tracing("modelyard-worker")) if settings.opentelemetry else None
