"""Summarises the records of a run per worker number. Output is formatted elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.records import Record


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of a group of records.

    Attributes:
        n_requests: Number of sent requests.
        n_succeeded: Number of requests whose job succeeded; all following figures are about these.
        p50_ms: Client latency, as are the next three; None if no job succeeded.
        inference_p50_ms: Duration of the batch's forward pass.
        queue_wait_p50_ms: Time from the request's arrival until a worker takes the batch.
        throughput_per_s: Succeeded requests per second of the run.
        accuracy: Fraction of correct predictions, or None if no true label is known.
    """

    n_requests: int
    n_succeeded: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    inference_p50_ms: float | None
    queue_wait_p50_ms: float | None
    throughput_per_s: float
    accuracy: float | None


def summarise(records: Sequence[Record], duration_s: float) -> Summary:
    """Summarise the records of a run that took `duration_s` seconds."""
    succeeded = [record for record in records if record.status == "succeeded"]
    latencies_ms = [record.client_latency_ms for record in succeeded]
    hits = [record.predicted == record.true_label for record in succeeded if record.true_label is not None]
    return Summary(
        n_requests=len(records),
        n_succeeded=len(succeeded),
        p50_ms=_percentile(latencies_ms, 50),
        p90_ms=_percentile(latencies_ms, 90),
        p99_ms=_percentile(latencies_ms, 99),
        max_ms=_percentile(latencies_ms, 100),
        inference_p50_ms=_percentile([record.inference_ms for record in succeeded], 50),
        queue_wait_p50_ms=_percentile([record.queue_wait_ms for record in succeeded], 50),
        throughput_per_s=len(succeeded) / duration_s if duration_s > 0 else 0.0,
        accuracy=sum(hits) / len(hits) if hits else None,
    )


def by_worker(records: Sequence[Record]) -> dict[int | None, list[Record]]:
    """Records by worker number, sorted; refused requests, without a number, come last as None."""
    groups: dict[int | None, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.worker is None, record.worker or 0)):
        groups.setdefault(record.worker, []).append(record)
    return groups


def served_by(records: Sequence[Record]) -> str:
    """Model name and versions in a worker number's records; several if the number was reassigned during the run."""
    versions = {(record.model_name, record.model_version) for record in records if record.model_name}
    return ", ".join(f"{name} {version}" for name, version in sorted(versions, key=str))


def _percentile(values: Sequence[float | None], percent: float) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.percentile(known, percent)) if known else None
