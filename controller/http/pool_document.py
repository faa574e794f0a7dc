"""The document of the pool for `GET /workers` and the page."""

from __future__ import annotations

import msgspec

from app.contract import TensorContract
from app.worker_record import WorkerRecord
from controller.pool_watcher import PoolView
from modelyard.schemas import InputShape, Latency, Pool, Replica, WorkerInfo


def pool_document(view: PoolView, now_ms: float) -> Pool:
    """All worker numbers with their model version, workers and backlog."""
    return Pool(tuple(_worker(view, queue, number, now_ms) for queue, number in _present(view)))


def _present(view: PoolView) -> list[tuple[str, int]]:
    """Queues that have a live worker or a backlog, by worker number."""
    queues = {record.queue for record in view.records} | set(view.backlog_jobs)
    return sorted(((q, view.numbers[q]) for q in queues if q in view.numbers), key=lambda row: row[1])


def _worker(view: PoolView, queue: str, number: int, now_ms: float) -> WorkerInfo:
    records = sorted(
        (record for record in view.records if record.queue == queue), key=lambda record: record.worker_id
    )
    name, version = view.snapshot.known[number]
    newest = max(records, key=lambda record: record.heartbeat_at_ms, default=None)
    oldest_at_ms = view.oldest_at_ms.get(queue)
    chosen = view.snapshot.by_number.get(number)
    return WorkerInfo(
        worker=number,
        model_name=name,
        model_version=version,
        queue=queue,
        val_accuracy=newest.val_accuracy if newest else None,
        val_accuracy_source=newest.val_accuracy_source if newest else "",
        dataset=newest.dataset if newest else "",
        input=_input(newest) if newest else None,
        live_workers=sum(record.state == "ready" for record in records),
        backlog_jobs=view.backlog_jobs.get(queue, 0),
        oldest_job_age_s=0.0 if oldest_at_ms is None else round(max(0.0, now_ms - oldest_at_ms) / 1000, 3),
        expected_wait_s=round(chosen.expected_wait_ms / 1000, 3) if chosen else None,
        inference_ms=newest.inference_ms if newest else Latency(),
        jobs_done=sum(record.jobs_done for record in records),
        jobs_failed=sum(record.jobs_failed for record in records),
        replicas=tuple(msgspec.convert(record, Replica, from_attributes=True) for record in records),
        example=msgspec.Raw(newest.example.encode()) if newest and newest.example else None,
        aliases=tuple(
            sorted(each for each, found in view.snapshot.aliases.get(name, {}).items() if found == version)
        ),
    )


def _input(record: WorkerRecord) -> InputShape:
    contract = record.input
    if isinstance(contract, TensorContract):
        return InputShape(contract.dtype, (-1, *contract.sample_shape))
    return msgspec.convert(msgspec.to_builtins(contract), InputShape)
