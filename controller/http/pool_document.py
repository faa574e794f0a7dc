"""The document of the pool for `GET /workers` and the page."""

from __future__ import annotations

import msgspec

from app.contract import FREE, Contract, TensorContract
from app.quality import VAL_ACCURACY
from app.worker_record import WorkerRecord, by_queue
from controller.input.image_layout import layout_of
from controller.pool_snapshot import Snapshot
from controller.pool_watcher import PoolView
from controller.ranking import half_width
from modelyard.schemas import ImageInput, InputShape, Latency, Pool, Replica, WorkerInfo

LAYOUTS = {None: "HW", 0: "CHW", 2: "HWC"}


def pool_document(view: PoolView, now_ms: float) -> Pool:
    """All worker numbers with their model version, workers and backlog."""
    groups, ranks = by_queue(view.records), _ranks(view.snapshot)
    present = (
        (view.numbers[queue], queue)
        for queue in {*groups, *view.backlog_jobs, *view.cold, *view.start_failures}
        if queue in view.numbers
    )
    return Pool(
        tuple(
            _worker(view, queue, groups.get(queue, []), ranks.get(number, (None, False)), now_ms)
            for number, queue in sorted(present)
        )
    )


def _ranks(snapshot: Snapshot) -> dict[int, tuple[int | None, bool]]:
    """By worker number: its place in its endpoint, and whether it is the first there with its input."""
    ranks: dict[int, tuple[int | None, bool]] = {}
    for endpoint in snapshot.endpoints.values():
        chosen = {route.candidate.worker for route in endpoint.routes}
        for rank, candidate in enumerate(endpoint.candidates, 1):
            ranks[candidate.worker] = rank, candidate.worker in chosen
    return ranks


def _worker(
    view: PoolView, queue: str, records: list[WorkerRecord], rank: tuple[int | None, bool], now_ms: float
) -> WorkerInfo:
    number = view.numbers[queue]
    name, version = view.snapshot.known[number]
    newest = records[0] if records else view.cold.get(queue)
    oldest_at_ms = view.oldest_at_ms.get(queue)
    candidate = view.snapshot.by_number.get(number)
    exclusion = view.snapshot.excluded.get(queue)
    replicas = sorted(records, key=lambda record: record.worker_id)
    return WorkerInfo(
        worker=number,
        model_name=name,
        model_version=version,
        queue=queue,
        val_accuracy=newest.val_accuracy if newest else None,
        metric=newest.metric if newest else VAL_ACCURACY,
        direction=newest.direction if newest else "higher",
        metric_value=newest.figure if newest else None,
        val_accuracy_source=newest.val_accuracy_source if newest else "",
        dataset=newest.dataset if newest else "",
        dataset_rows=newest.dataset_rows if newest else 0,
        val_accuracy_half_width=_half_width(newest) if newest else None,
        input=_input(newest) if newest else None,
        live_workers=sum(record.state == "ready" for record in records),
        backlog_jobs=view.backlog_jobs.get(queue, 0),
        oldest_job_age_s=0.0 if oldest_at_ms is None else round(max(0.0, now_ms - oldest_at_ms) / 1000, 3),
        expected_wait_s=round(candidate.expected_wait_ms / 1000, 3) if candidate else None,
        inference_ms=newest.inference_ms if newest else Latency(),
        jobs_done=sum(record.jobs_done for record in records),
        jobs_failed=sum(record.jobs_failed for record in records),
        replicas=tuple(msgspec.convert(record, Replica, from_attributes=True) for record in replicas),
        example=msgspec.Raw(newest.example.encode()) if newest and newest.example else None,
        rank=rank[0],
        excluded=exclusion.reason if exclusion else "",
        excluded_why=exclusion.text if exclusion else "",
        circuit_open=queue in view.open_circuits,
        cold=queue in view.cold,
        scaled_to=view.scaled[queue].replicas if queue in view.scaled else None,
        start_failure=view.start_failures.get(queue),
        chosen=rank[1],
        aliases=tuple(
            sorted(each for each, found in view.snapshot.aliases.get(name, {}).items() if found == version)
        ),
    )


def _half_width(record: WorkerRecord) -> float | None:
    if record.val_accuracy is None or not record.dataset_rows:
        return None
    return round(half_width(record.val_accuracy, record.dataset_rows), 4)


def _input(record: WorkerRecord) -> InputShape:
    contract = record.input
    if isinstance(contract, TensorContract):
        return InputShape(contract.dtype, (-1, *contract.sample_shape), image=_image(contract))
    shown = msgspec.convert(msgspec.to_builtins(contract), InputShape)
    return msgspec.structs.replace(shown, image=_image(contract))


def _image(contract: Contract) -> ImageInput | None:
    layout = layout_of(contract)
    if layout is None:
        return None
    width, height = (None if size == FREE else size for size in (layout.width, layout.height))
    return ImageInput(width, height, layout.channels, LAYOUTS[layout.place], layout.white)
