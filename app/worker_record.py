"""Worker records, which every worker publishes, and the worker numbers of the queues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from app.contract import (
    DTYPES,
    FREE,
    NESTED,
    SCALARS,
    TENSOR_DTYPES,
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    TensorContract,
)
from app.ledger.wire import ANY_CONTRACT_VERSION, SCHEMA_VERSION, newer, unreadable
from app.quality import VAL_ACCURACY, Direction
from app.redis import keys
from app.redis.script import Call, load, run_now
from app.registry_database import LATEST
from app.server_errors import WireError, WorkerNumberTakenError
from modelyard.schemas import Latency, RequirementDifference

MANAGER = "_MODELYARD_MANAGER"  # variable that `modelyard up` sets for its workers; not a setting
UP = "up"
WorkerState = Literal["starting", "ready", "draining"]


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record that a worker publishes each heartbeat.

    Attributes:
        worker_id: Unique for each serving process.
        worker: Worker number of its queue.
        val_accuracy: Fraction in [0, 1], as `app.quality` reads it, or None; also None if another metric ranks it.
        input: Contract of the version. Older releases read only a plain tensor.
        outputs: Outputs that its signature states, in the form of a contract; None if it states none.
        example: A request body that the version answers, as JSON; empty if none is known.
        started_at_ms: Redis's clock.
        heartbeat_at_ms: When this record was written, Redis's clock.
        running_batch: Running batch, or empty.
        batch_samples_mean: Mean samples per forward pass over the window.
        recent_pass_ms: Median of its last few forward passes; 0 before the first, and in records of older releases.
        pid: Process id of the serving process.
        main_pid: Process id of the supervisor, or of its alias follower, which receives signals.
        device: `cpu` or `cuda:N`.
        unreadable: Messages and batches that it could not read.
        model_id: Identifies this model among others of the same name and version, in addition to the run: MLflow's id
            (`m-…`), or the digest of its files if there is neither; None in records of older releases.
        registry: The registry's location, without secrets.
        warnings: Faults that do not prevent serving.
        metric: The metric that ranks the version.
        direction: Which value of that metric is better.
        metric_value: Value of that metric, if it is not val_accuracy.
        val_accuracy_source: Where the metric was logged: `model`, `run` or `tag`, empty without a value and in
            records of older releases.
        dataset: Name of the data set of the metric, empty if MLflow does not have it.
        dataset_digest: MLflow's digest of that data set.
        dataset_rows: Its number of rows; 0 if unknown, and in records of older releases.
        val_correct: Which of them the version got right, see `app.quality.packed_rows`; empty if unknown.
        requirements: The first differences between its environment and the version's `requirements.txt`.
        aliases: Version by alias: all aliases of its model in the registry.
        newest_version: Newest version of its model in the registry; 0 if unknown.
        aliases_read_at_ms: When they were read, Redis's clock; 0 if they were not.
        follows: The alias that its worker follows, or `latest`; empty if its version is fixed.
        memory_bytes: Resident memory of the serving process; 0 if unknown, and in records of older releases.
        deaths_in_a_row: Serving processes of this worker that died while they ran a batch, since a forward pass last
            ended well; 0 in records of older releases.
        managed_by: `up` if `modelyard up` starts and stops it; otherwise empty.
        schema_version: Result of `record_version` for the contract.
    """

    worker_id: str
    worker: int
    queue: str
    model_name: str
    model_version: int
    run_id: str
    val_accuracy: float | None
    input: Contract
    state: WorkerState
    started_at_ms: float
    heartbeat_at_ms: float
    running_batch: str = ""
    jobs_done: int = 0
    jobs_failed: int = 0
    batches_done: int = 0
    batch_samples_last: int = 0
    batch_samples_mean: float = 0.0
    inference_ms: Latency = Latency()
    host: str = ""
    pid: int = 0
    main_pid: int = 0
    device: str = "cpu"
    unreadable: int = 0
    model_id: str | None = None
    registry: str = ""
    warnings: tuple[str, ...] = ()
    metric: str = VAL_ACCURACY
    direction: Direction = "higher"
    metric_value: float | None = None
    val_accuracy_source: str = ""
    dataset: str = ""
    dataset_digest: str = ""
    dataset_rows: int = 0
    val_correct: str = ""
    requirements: tuple[RequirementDifference, ...] = ()
    example: str = ""
    outputs: Contract | None = None
    aliases: dict[str, int] = {}
    newest_version: int = 0
    aliases_read_at_ms: float = 0.0
    follows: str = ""
    managed_by: str = ""
    memory_bytes: int = 0
    recent_pass_ms: float = 0.0
    deaths_in_a_row: int = 0
    schema_version: int = SCHEMA_VERSION

    @property
    def figure(self) -> float | None:
        """Value of the metric that ranks the version."""
        return self.val_accuracy if self.metric == VAL_ACCURACY else self.metric_value


def followed_version(record: WorkerRecord) -> int:
    """The version that the followed alias names in the registry; 0 if unknown, or if the worker follows none."""
    return record.newest_version if record.follows == LATEST else record.aliases.get(record.follows, 0)


def record_version(contract: Contract) -> int:
    """The oldest schema version that can represent a record of a version with this contract."""
    return SCHEMA_VERSION if isinstance(contract, TensorContract) else ANY_CONTRACT_VERSION


encode_record = msgspec.json.Encoder().encode
_decode_document = msgspec.json.Decoder(dict[str, Any]).decode


def decode_record(data: bytes) -> WorkerRecord:
    """Read a worker record.

    Raises:
        WireError: The bytes are not a record of this schema version.
    """
    try:
        document = _decode_document(data)
        if isinstance(document.get("input"), dict):
            document["input"].setdefault("kind", "tensor")  # older releases know no other kind, and name none
        record = msgspec.convert(document, WorkerRecord)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable("worker record", error, data, "json", ANY_CONTRACT_VERSION) from None
    if record.schema_version > ANY_CONTRACT_VERSION:
        raise newer(record.schema_version, ANY_CONTRACT_VERSION)
    if record.schema_version < SCHEMA_VERSION:
        raise WireError(f"worker record of schema version {record.schema_version}")
    _check(record)
    return record


def _check(record: WorkerRecord) -> None:
    """Refuse a well-formed record with invalid values, because routing relies on it."""
    if record.queue != keys.queue_name(record.model_name, record.model_version) or not keys.is_queue(
        record.queue
    ):
        raise WireError(f"a worker record names the queue {record.queue!r} for {record.model_name!r}")
    if not _makes_sense(record.input):
        raise WireError(f"a worker record has the input contract {record.input}")
    if record.val_correct.strip("0123456789abcdef"):
        raise WireError("a worker record does not say which rows its version got right")
    if record.outputs is not None and not _makes_sense(record.outputs):
        raise WireError(f"a worker record has the outputs {record.outputs}")


def _makes_sense(contract: Contract) -> bool:
    if isinstance(contract, TensorContract):
        return contract.dtype in DTYPES and min(contract.sample_shape, default=1) >= 1
    if isinstance(contract, AnyContract):
        return True
    if isinstance(contract, ColumnsContract):
        nameless = [each.name is None for each in contract.columns]
        return len(set(nameless)) == 1 and all(map(_is_column, contract.columns))
    fields = contract.tensors
    return bool(fields) and all(
        each.dtype in TENSOR_DTYPES
        and all(size >= 1 or size == FREE for size in each.shape)
        and (each.name is not None or len(fields) == 1)
        for each in fields
    )


def _is_column(column: Column) -> bool:
    return _is_type(column.type)


def _is_type(kind: ColumnType) -> bool:
    if kind.kind in ("array", "map"):
        return kind.items is not None and _is_type(kind.items)
    return kind.kind in (*SCALARS, *NESTED) and all(map(_is_column, kind.properties))


def publish_record(record: WorkerRecord, ttl_ms: int, *, changed: bool) -> Call:
    """Write a worker's record with this time to live; controllers are notified if it changed.

    The script returns Redis's time (seconds, microseconds) and the queue's worker number, if it has one. If a worker of
    the queue serves another model, nothing is written, and that worker's record is returned as well.
    """
    return Call(
        load("publish_record"),
        [keys.worker(record.worker_id), keys.WORKERS, keys.NUMBERS],
        [
            encode_record(record),
            ttl_ms,
            record.worker_id,
            record.queue,
            keys.POOL_CHANNEL if changed else "",
            record.run_id,
            record.model_id or "",
            keys.worker(""),
            msgspec.json.encode(record.queue),
        ],
    )


def is_same_model(one: WorkerRecord, other: WorkerRecord) -> bool:
    """Whether two workers of a queue serve the same model; records of older releases contain only the run."""
    are_known = one.model_id is not None and other.model_id is not None
    return one.run_id == other.run_id and (one.model_id == other.model_id or not are_known)


def by_queue(records: Iterable[WorkerRecord]) -> dict[str, list[WorkerRecord]]:
    """The records of each queue, newest heartbeat first: every worker of a queue serves the same version."""
    groups: dict[str, list[WorkerRecord]] = {}
    for record in sorted(records, key=lambda each: -each.heartbeat_at_ms):
        groups.setdefault(record.queue, []).append(record)
    return groups


def ready_by_queue(records: Iterable[WorkerRecord]) -> dict[str, list[WorkerRecord]]:
    """The records of the ready workers of each queue that has any, in the order of `by_queue`."""
    return by_queue(record for record in records if record.state == "ready")


def identity(record: WorkerRecord) -> str:
    """The version of a worker and its location, for people."""
    model = ", ".join(each for each in (record.model_id, record.run_id and f"run {record.run_id}") if each)
    return f"{model or 'no run'} of {record.registry or 'an unnamed registry'} on {record.host or record.worker_id}"


def records_of_host(redis: Any, host: str) -> list[WorkerRecord]:
    """Records of the live workers of a host. A dead worker's has expired.

    Raises:
        WireError: One cannot be read.
    """
    return [record for record in _live_records(redis, f"{host}-".encode()) if record.host == host]


def has_other_ready_worker(redis: Any, own: WorkerRecord) -> bool:
    """Whether another worker of the same queue is ready.

    Args:
        redis: A synchronous Redis client.
    """
    ready = ready_by_queue(_live_records(redis)).get(own.queue, ())
    return any(record.worker_id != own.worker_id for record in ready)


def open_jobs(redis: Any, queue: str) -> int:
    """Jobs of a queue that have no outcome yet.

    Args:
        redis: A synchronous Redis client.
    """
    return max(0, int(redis.hget(keys.BACKLOG, queue) or 0))


def _live_records(redis: Any, prefix: bytes = b"") -> list[WorkerRecord]:
    """Records of the live workers whose id begins with the prefix."""
    worker_ids = redis.zrange(keys.WORKERS, 0, -1)
    names = [keys.worker(each.decode()) for each in worker_ids if each.startswith(prefix)]
    return [decode_record(data) for data in (redis.mget(names) if names else []) if data]


def withdraw_record(redis: Any, worker_id: str) -> None:
    """Remove a worker's record and notify the controllers; its batches are sent again.

    Args:
        redis: A synchronous Redis client.
    """
    pipe = redis.pipeline(transaction=False)
    pipe.delete(keys.worker(worker_id))
    pipe.zrem(keys.WORKERS, worker_id)
    pipe.publish(keys.POOL_CHANNEL, worker_id)
    pipe.execute()


def assign_number(redis: Any, queue: str, asked: int | None) -> int:
    """Assign a worker number to a queue, atomically: the requested number, its existing one, or the next free one.

    Args:
        redis: A synchronous Redis client.
        queue: Queue of a model version.
        asked: Requested number; it replaces the queue's existing one.

    Raises:
        WorkerNumberTakenError: Another queue has the requested number.
    """
    answer = run_now(redis, Call(load("assign_number"), [keys.NUMBERS], [queue, asked or 0]))
    if answer[0] < 0:
        raise WorkerNumberTakenError(
            f"worker number {asked} belongs to {answer[1].decode()}; choose another WORKER or unset it"
        )
    return int(answer[0])
