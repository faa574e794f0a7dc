"""What travels through Redis comes back as it was written; anything else is a WireError, never a crash."""

from contextlib import suppress
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import worker_record
from app.contract import (
    OUTPUT_DTYPES,
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    TensorContract,
    TensorField,
    TensorsContract,
)
from app.contract.payloads import JobForm
from app.ledger import wire
from app.ledger.wire import BatchHead, BatchOutcome, JobEntry, JobOutcome
from app.server_errors import NewerWireError, WireError
from modelyard.schemas import Latency
from tests.pool_samples import head, outcome, record

names = st.text(max_size=20)
moments_ms = st.floats(0, 1e14)
shapes = st.lists(st.integers(1, 512), max_size=4).map(tuple)
entries = st.builds(JobEntry, st.integers(1, 65_535), moments_ms, moments_ms, names, st.booleans(), names)
heads = st.builds(
    BatchHead,
    queue=names,
    worker=st.integers(1, 10**6),
    reply_to=names,
    model_name=names,
    model_version=st.integers(1, 10**6),
    val_accuracy=st.none() | st.floats(0, 1),
    dtype=names,
    sample_shape=shapes,
    jobs=st.lists(entries, max_size=5),
)
job_outcomes = st.builds(
    JobOutcome,
    st.sampled_from(["succeeded", "failed", "expired", "cancelled"]),
    st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False), max_size=5),
    st.binary(max_size=40) | st.tuples(st.sampled_from(OUTPUT_DTYPES), st.binary(max_size=40)),
    names,
    names,
)
outcomes = st.builds(
    BatchOutcome,
    worker_id=names,
    started_at_ms=moments_ms,
    finished_at_ms=moments_ms,
    inference_ms=moments_ms,
    n_samples=st.integers(0, 10**6),
    jobs=st.lists(job_outcomes, max_size=5),
)


@given(heads)
def test_a_batch_head_comes_back_as_it_was_written(value: BatchHead) -> None:
    assert wire.decode_head(wire.encode(value)) == value


@given(outcomes)
def test_an_outcome_comes_back_as_it_was_written(value: BatchOutcome) -> None:
    assert wire.decode_outcome(wire.encode(value)) == value


@given(
    st.none() | st.floats(0, 1),
    names,
    st.sampled_from(["starting", "ready", "draining"]),
    st.builds(Latency, st.none() | moments_ms, st.none() | moments_ms, st.none() | moments_ms),
)
def test_a_worker_record_comes_back_as_it_was_written(
    val_accuracy: float | None, text: str, state: str, latency: Latency
) -> None:
    value = record(val_accuracy=val_accuracy, host=text, run_id=text, state=state, inference_ms=latency)
    assert worker_record.decode_record(worker_record.encode_record(value)) == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_unreadable_and_never_crash(data: bytes) -> None:
    for decode in (wire.decode_head, wire.decode_outcome, worker_record.decode_record):
        with pytest.raises(WireError):
            decode(data)


@pytest.mark.parametrize(
    ("decode", "written"),
    [
        (wire.decode_head, wire.encode(head(2))),
        (wire.decode_outcome, wire.encode(outcome(2))),
        (worker_record.decode_record, worker_record.encode_record(record())),
    ],
    ids=["head", "outcome", "record"],
)
def test_a_value_truncated_anywhere_is_unreadable(decode: Any, written: bytes) -> None:
    for length in range(len(written)):
        with pytest.raises(WireError):
            decode(written[:length])


@pytest.mark.parametrize(
    ("decode", "written"),
    [
        (wire.decode_head, wire.encode(msgspec.structs.replace(head(), schema_version=4))),
        (wire.decode_outcome, wire.encode(msgspec.structs.replace(outcome(), schema_version=4))),
        (wire.decode_outcome, wire.encode(msgspec.structs.replace(outcome(), schema_version=0))),
        (
            worker_record.decode_record,
            worker_record.encode_record(msgspec.structs.replace(record(), schema_version=4)),
        ),
    ],
    ids=["head", "outcome", "outcome of none", "record"],
)
def test_a_value_of_another_schema_version_is_refused_and_says_which(decode: Any, written: bytes) -> None:
    with pytest.raises(WireError, match=r"version [04]"):
        decode(written)


def test_a_field_that_a_later_version_adds_is_no_obstacle() -> None:
    fields = msgspec.msgpack.decode(wire.encode(outcome()))
    assert wire.decode_outcome(msgspec.msgpack.encode(fields | {"new": 1})) == wire.decode_outcome(
        msgspec.msgpack.encode(fields)
    )


def test_a_job_from_before_there_were_owners_is_nobodys_and_older_processes_read_past_one() -> None:
    fields = msgspec.msgpack.decode(wire.encode(head()))
    written = fields["jobs"][0]
    assert len(written) == 9
    old = msgspec.msgpack.encode(fields | {"jobs": [written[:5]]})
    assert wire.decode_head(old).jobs[0].owner == ""
    newer = msgspec.msgpack.encode(fields | {"jobs": [[*written, "something later"]]})
    assert wire.decode_head(newer).jobs[0].forced is False


WRITTEN = {
    "head": (wire.decode_head, wire.encode(head(3))),
    "outcome": (wire.decode_outcome, wire.encode(outcome(3))),
    "job outcome": (wire.decode_job_outcome, wire.encode(outcome().jobs[0])),
    "job outcome of another dtype": (
        wire.decode_job_outcome,
        wire.encode(JobOutcome("succeeded", [1], ("float64", b"12345678"))),
    ),
    "worker record": (worker_record.decode_record, worker_record.encode_record(record())),
}


@pytest.mark.parametrize("what", WRITTEN)
@given(data=st.data())
def test_bytes_that_were_spoilt_anywhere_are_read_or_refused_and_never_crash(
    what: str, data: st.DataObject
) -> None:
    decode, written = WRITTEN[what]
    spoilt = bytearray(written)
    places = st.integers(0, len(spoilt) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        spoilt[place] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        decode(bytes(spoilt))


def test_garbage_is_told_from_what_a_newer_release_wrote() -> None:
    newer = msgspec.msgpack.encode({"schema_version": 9, "jobs": "of another shape"})
    for decode, data in ((wire.decode_head, newer), (worker_record.decode_record, b'{"schema_version": 9}')):
        with pytest.raises(NewerWireError, match=r"schema version 9, of a newer release.*update it"):
            decode(data)
    for garbage in (b"", b"?", msgspec.msgpack.encode({"schema_version": 1})):
        with pytest.raises(WireError) as raised:
            wire.decode_head(garbage)
        assert not isinstance(raised.value, NewerWireError)


# Written by release 0.1.0, whose scores were float32 alone.
OLD_OUTCOME = bytes.fromhex(
    "87a9776f726b65725f6964a6686f73742d31ad737461727465645f61745f6d73cb4278bcfe56800800ae66696e697368"
    "65645f61745f6d73cb4278bcfe56803400ac696e666572656e63655f6d73cb3ff8000000000000a96e5f73616d706c65"
    "7304a46a6f62739595a97375636365656465649101c408cdcccc3d6666663fa0a095a9737563636565646564920100c4"
    "100000803e0000403f0000803f00000000a0a095a973756363656564656491cb419d6f3455000000c400a0a095a66661"
    "696c656490c400ac6d6f64656c5f6661696c6564be746865206d6f64656c206661696c6564206f6e207468697320696e"
    "70757495a76578706972656490c400ab6a6f625f65787069726564d92a74686520646561646c696e6520706173736564"
    "206265666f7265206120776f726b65722072616e206974ae736368656d615f76657273696f6e01"
)
OLD_JOB_OUTCOME = bytes.fromhex("95a9737563636565646564920100c4100000803e0000403f0000803f00000000a0a0")
OLD_HEAD = bytes.fromhex(
    "8ba57175657565b36d6f64656c796172643a71756575653a4d3a31a6776f726b657201a87265706c795f746faa636f6e"
    "74726f6c6c6572aa6d6f64656c5f6e616d65a14dad6d6f64656c5f76657273696f6e01ac76616c5f6163637572616379"
    "cb3fe0000000000000a56474797065a7666c6f61743332ac73616d706c655f73686170659102a46a6f6273919601cb3f"
    "f8000000000000cb4004000000000000a6666f72636564c3a5616c696365ab726573656e745f66726f6da0ae73636865"
    "6d615f76657273696f6e01"
)
OUTCOMES = [
    JobOutcome("succeeded", [1], np.array([[0.1, 0.9]], "<f4").tobytes()),
    JobOutcome("succeeded", [1, 0], np.array([[0.25, 0.75], [1, 0]], "<f4").tobytes()),
    JobOutcome("succeeded", [123456789.25]),
    JobOutcome("failed", error_code="model_failed", error_detail="the model failed on this input"),
    wire.EXPIRED,
]


class OldJobOutcome(msgspec.Struct, frozen=True, array_like=True):
    """`JobOutcome` as older processes know it."""

    status: Literal["succeeded", "failed", "expired", "cancelled"]
    classes: list[int | float] = []
    scores: bytes = b""
    error_code: str = ""
    error_detail: str = ""


def test_what_an_older_release_wrote_is_read_and_float32_is_still_written_so() -> None:
    read = wire.decode_outcome(OLD_OUTCOME)
    assert (read.worker_id, read.n_samples, read.inference_ms, read.jobs) == ("host-1", 4, 1.5, OUTCOMES)
    assert wire.outcome_version(read.jobs) == 1
    assert wire.decode_outcome(wire.encode(read)) == read
    assert wire.decode_job_outcome(OLD_JOB_OUTCOME) == OUTCOMES[1]
    by_old = msgspec.msgpack.decode(wire.encode(OUTCOMES[1]), type=OldJobOutcome)
    assert by_old == msgspec.msgpack.decode(OLD_JOB_OUTCOME, type=OldJobOutcome)
    old_head = wire.decode_head(OLD_HEAD)
    assert (old_head.dtype, old_head.sample_shape, old_head.jobs[0].owner) == ("float32", (2,), "alice")
    assert (old_head.kind, old_head.params, old_head.sizes) == ("tensor", b"", ())
    written: dict[str, Any] = msgspec.msgpack.decode(wire.encode(old_head))
    for name, value in msgspec.msgpack.decode(OLD_HEAD).items():
        if name == "jobs":
            assert [new[: len(old)] for new, old in zip(written["jobs"], value, strict=True)] == value
        else:
            assert written[name] == value


@given(outcomes)
def test_an_older_process_reads_float32_and_refuses_what_it_would_take_for_float32(
    value: BatchOutcome,
) -> None:
    written = wire.encode(msgspec.structs.replace(value, schema_version=wire.outcome_version(value.jobs)))
    has_names = any(isinstance(job.scores, tuple) for job in value.jobs)
    assert msgspec.msgpack.decode(written)["schema_version"] == (2 if has_names else 1)
    for job in value.jobs:
        if isinstance(job.scores, tuple):
            with pytest.raises(msgspec.ValidationError):
                msgspec.msgpack.decode(wire.encode(job), type=OldJobOutcome)
        else:
            read = msgspec.msgpack.decode(wire.encode(job), type=OldJobOutcome)
            assert msgspec.structs.astuple(read) == msgspec.structs.astuple(job)[:5]


# The records of the previous release, as it reads them; it knew plain tensors only.
class OldHead(msgspec.Struct, kw_only=True):
    queue: str
    worker: int
    dtype: str
    sample_shape: tuple[int, ...]
    jobs: list[JobEntry]
    schema_version: int = 1


class OldNamedOutcome(msgspec.Struct, array_like=True):
    status: Literal["succeeded", "failed", "expired", "cancelled"]
    classes: list[int | float] = []
    scores: bytes | tuple[str, bytes] = b""
    error_code: str = ""
    error_detail: str = ""


class OldOutcome(msgspec.Struct, kw_only=True):
    worker_id: str
    jobs: list[OldNamedOutcome]
    schema_version: int = 1


class OldInput(msgspec.Struct):
    dtype: str
    sample_shape: tuple[int, ...]


class OldRecord(msgspec.Struct, kw_only=True):
    worker_id: str
    queue: str
    input: OldInput
    schema_version: int = 1


def by_previous_release(written: bytes, kind: Any, newest: int, form: Any) -> str:
    """What the previous release made of a record, by its rules."""
    try:
        version: int = form.decode(written, type=kind).schema_version
        return "read" if version <= newest else "of a newer release"
    except msgspec.ValidationError:
        return "of a newer release" if form.decode(written)["schema_version"] > newest else "unreadable"


def written_outcome(own: JobOutcome, **fields: Any) -> bytes:
    return wire.encode(outcome(jobs=[own], schema_version=wire.outcome_version([own]), **fields))


CONTRACTS: tuple[Contract, ...] = (
    TensorContract("float32", (2,)),
    TensorsContract((TensorField("a", "float32", (-1, 2)),)),
    ColumnsContract((Column("a", ColumnType("long")),)),
    AnyContract(),
)
SCORED = JobOutcome("succeeded", [1], np.array([[0.1, 0.9]], "<f4").tobytes())
DTYPED = JobOutcome("succeeded", [1], ("float64", np.array([[0.1, 0.9]]).tobytes()))


def test_the_previous_release_reads_what_it_knows_and_says_of_the_rest_that_it_is_newer() -> None:
    for contract in CONTRACTS:
        is_plain = isinstance(contract, TensorContract)
        expected = "read" if is_plain else "of a newer release"
        own = record(input=contract, schema_version=worker_record.record_version(contract))
        data = worker_record.encode_record(own)
        assert by_previous_release(data, OldRecord, 1, msgspec.json) == expected
        assert worker_record.decode_record(data) == own
        kind = msgspec.to_builtins(contract)["kind"]
        new_head = head() if is_plain else msgspec.structs.replace(head(), **JobForm(kind).head_fields([8]))
        data = wire.encode(new_head)
        assert by_previous_release(data, OldHead, 1, msgspec.msgpack) == expected
        assert wire.decode_head(data) == new_head
    outputs = wire.Array("float64", (1, 1, 1), b"12345678")
    for data, expected in (
        (written_outcome(SCORED, labels=["no", "yes"]), "read"),
        (written_outcome(DTYPED), "read"),
        (written_outcome(msgspec.structs.replace(SCORED, outputs=outputs, task="classification")), "read"),
        (written_outcome(JobOutcome("succeeded", outputs=outputs)), "of a newer release"),
    ):
        assert by_previous_release(data, OldOutcome, 2, msgspec.msgpack) == expected
        assert wire.encode(wire.decode_outcome(data)) == data


def test_outcomes_of_the_previous_release_have_no_labels() -> None:
    assert wire.decode_outcome(OLD_OUTCOME).labels == []
