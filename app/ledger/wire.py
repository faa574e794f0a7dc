"""Wire formats in Redis: batch heads and batch outcomes, as msgpack; worker records are in `app.worker_record`.

Every value carries `schema_version`. Unreadable bytes raise `WireError`; nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

from app.server_errors import NewerWireError, WireError

SCHEMA_VERSION = 1
# Schema of batches with other input than a plain tensor. Older workers report a batch of a newer release.
ANY_CONTRACT_VERSION = 2
# Schema of batches whose samples are in several fields of their record.
PIECES_VERSION = 3
# Schema of outcomes whose scores name their dtype. Older processes would read the bytes as float32; with this schema
# version they report an outcome of a newer release instead.
NAMED_DTYPE_VERSION = 2
# Schema of outcomes with outputs of any kind instead of classes and scores.
OUTPUTS_VERSION = 3


class JobEntry(msgspec.Struct, frozen=True, array_like=True):
    """One accepted job of a batch.

    Attributes:
        n_samples: Samples of the job; its rows of the batch's input follow those of the jobs before it.
        received_at_ms: When the request arrived, Redis's clock.
        deadline_ms: When the job expires, Redis's clock.
        policy: Rule that chose the queue.
        forced: Whether the request named the queue.
        owner: Name of its caller's API key; empty without one. This field and all that follow have a default, so
            that older records stay readable; older processes ignore them.
        decision: Id of the decision that chose the queue, see `controller.decisions`; empty if the request named it.
        degraded: Whether a better version was left because it would have answered too late.
        comparable: Whether the figures that decided were measured on one declared data set; None if none decided.
    """

    n_samples: int
    received_at_ms: float
    deadline_ms: float
    policy: str
    forced: bool
    owner: str = ""
    decision: str = ""
    degraded: bool = False
    comparable: bool | None = None


class BatchHead(msgspec.Struct, frozen=True, kw_only=True):
    """A batch without its input.

    The input is the jobs' data in sequence: samples in C order, little-endian, if `kind` is `tensor`; otherwise
    MessagePack with `sizes` bytes per job. A job of kind `tensors` holds a triple (dtype, shape, bytes or a list of
    text) per tensor. A job of kind `columns` holds a list of values per column, or their bytes (see
    `packed_columns`), or None if an optional column is absent. A job of kind `any` holds the key and the value of the
    request's body.

    Attributes:
        queue: Its queue.
        worker: Worker number of the queue.
        reply_to: Id of the controller that dispatched it.
        model_name: Registered model.
        model_version: Its version.
        val_accuracy: Fraction in [0, 1] published when the batch was routed, or None.
        rerouted_from: Version that it waited for before it was moved, as `NAME/3`; empty if it was not.
        metric: The metric that ranks the version, if it is not val_accuracy, else empty.
        direction: Which value of that metric is better.
        metric_value: Value of that metric when the batch was routed, or None.
        dtype: NumPy name of the input's element type, if it is a plain tensor.
        sample_shape: Shape of one sample, if it is a plain tensor.
        jobs: The jobs, by index.
        resent_from: Id of the quarantined job that its only job repeats, or empty.
        cold: Whether no worker of the version was ready when the batch was accepted.
        kind: Kind of the version's contract.
        params: Parameters common to all jobs, as MessagePack; empty without parameters.
        sizes: Size of each job's data in bytes, unless `kind` is `tensor`.
        traces: W3C `traceparent` of each job, if its controller traces.
        callbacks: URL of the webhook of each job that has one, by index.
    """

    queue: str
    worker: int
    reply_to: str
    model_name: str
    model_version: int
    val_accuracy: float | None
    dtype: str
    sample_shape: tuple[int, ...]
    jobs: list[JobEntry]
    resent_from: str = ""
    kind: Literal["tensor", "tensors", "columns", "any"] = "tensor"
    params: bytes = b""
    sizes: tuple[int, ...] = ()
    schema_version: int = SCHEMA_VERSION
    traces: tuple[str, ...] = ()
    metric: str = ""
    direction: str = ""
    metric_value: float | None = None
    callbacks: dict[int, str] = {}
    rerouted_from: str = ""
    cold: bool = False


Label: TypeAlias = str | int | float | bool
Scores: TypeAlias = bytes | tuple[str, bytes]


class Array(msgspec.Struct, frozen=True, array_like=True):
    """A tensor in a model's output.

    Attributes:
        dtype: NumPy name, one of `app.contract.OUTPUT_DTYPES`.
        data: Little-endian, C order.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes


# One tensor, several tensors by name, or any other output as JSON.
Outputs: TypeAlias = Array | dict[str, Array] | bytes


class JobOutcome(msgspec.Struct, frozen=True, array_like=True):
    """The outcome of one job.

    Attributes:
        status: One of `FINAL_STATUSES`.
        classes: Predicted class (or value) per sample; NaN if the sample's scores contain NaN; empty unless
            succeeded.
        scores: Scores per sample, little-endian, shape (n_samples, n_scores): bytes of float32, or the NumPy name
            of another dtype, one of `app.contract.OUTPUT_DTYPES`, and its bytes. Empty if the model has no scores.
        error_code: Stable code, if failed.
        error_detail: One sentence, if failed.
        outputs: The model's output, if classes and scores do not represent it completely. Has a default, so that
            older records stay readable; older processes ignore it if there are classes.
        task: Meaning of the numbers in `classes`, if the version declares it: empty, `classification` or
            `regression`.
    """

    status: Literal["succeeded", "failed", "expired", "cancelled"]
    classes: list[int | float] = []
    scores: Scores = b""
    error_code: str = ""
    error_detail: str = ""
    outputs: Outputs | None = None
    task: str = ""


EXPIRED = JobOutcome(
    "expired", error_code="job_expired", error_detail="the deadline passed before a worker ran it"
)
CANCELLED = JobOutcome("cancelled", error_code="job_cancelled", error_detail="the job was cancelled")


class BatchOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a batch.

    Attributes:
        worker_id: Worker that ran it; empty if it did not run.
        started_at_ms: When the worker claimed it, Redis's clock.
        finished_at_ms: When its outcomes were written, Redis's clock.
        inference_ms: Duration of the forward pass of the whole batch.
        n_samples: Samples in that pass.
        jobs: Outcomes, by job index.
        schema_version: Result of `outcome_version` for the jobs.
        labels: Name of each class, in the order of the scores; empty if unknown. Has a default, so that older records
            stay readable; older processes ignore it.
        head: The encoded head of a batch that was moved to another version, for the controller that sent it to the
            first one; else empty.
    """

    worker_id: str
    started_at_ms: float
    finished_at_ms: float
    inference_ms: float
    n_samples: int
    jobs: list[JobOutcome]
    schema_version: int = SCHEMA_VERSION
    labels: list[Label] = []
    head: bytes = b""


def outcome_version(jobs: Iterable[JobOutcome]) -> int:
    """The oldest schema version that can represent these outcomes."""
    version = SCHEMA_VERSION
    for job in jobs:
        if job.outputs is not None and not job.classes:
            return OUTPUTS_VERSION
        if type(job.scores) is tuple:
            version = NAMED_DTYPE_VERSION
    return version


encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(BatchHead).decode
_decode_job_outcome = msgspec.msgpack.Decoder(JobOutcome).decode
_decode_outcome = msgspec.msgpack.Decoder(BatchOutcome).decode


def decode_head(data: bytes) -> BatchHead:
    """Read a batch head.

    Raises:
        WireError: The bytes are not a batch head of this schema version.
    """
    try:
        head = _decode_head(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable("batch head", error, data, newest=PIECES_VERSION) from None
    _check_version(head.schema_version, PIECES_VERSION)
    return head


def decode_outcome(data: bytes) -> BatchOutcome:
    """Read a batch's outcome.

    Raises:
        WireError: The bytes are not an outcome of this schema version.
    """
    try:
        outcome = _decode_outcome(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise unreadable("outcome", error, data, newest=OUTPUTS_VERSION) from None
    _check_version(outcome.schema_version, OUTPUTS_VERSION)
    return outcome


def decode_job_outcome(data: bytes) -> JobOutcome:
    """Read one job's outcome.

    Raises:
        WireError: The bytes are not an outcome.
    """
    try:
        return _decode_job_outcome(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"unreadable outcome: {error}") from None


class _Versioned(msgspec.Struct):
    schema_version: int


_decode_version = {
    "msgpack": msgspec.msgpack.Decoder(_Versioned).decode,
    "json": msgspec.json.Decoder(_Versioned).decode,
}


def unreadable(
    what: str,
    error: Exception,
    data: bytes,
    form: Literal["msgpack", "json"] = "msgpack",
    newest: int = SCHEMA_VERSION,
) -> WireError:
    """The error for unreadable `data`: it comes from a newer release, or it is invalid.

    Args:
        newest: The newest schema version that this process reads.
    """
    try:
        version = _decode_version[form](data).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError):
        version = 0
    if version > newest:
        return newer(version, newest)
    return WireError(f"unreadable {what}: {error}")


def _check_version(version: int, newest: int) -> None:
    if version > newest:
        raise newer(version, newest)
    if version < SCHEMA_VERSION:
        raise WireError(f"schema version {version}, this process reads {SCHEMA_VERSION}")


def newer(version: int, newest: int) -> NewerWireError:
    """The error for data of a schema version above `newest`, the newest that this process reads."""
    return NewerWireError(
        f"schema version {version}, of a newer release; this process reads {newest}: update it, "
        "or ask one of that release"
    )
