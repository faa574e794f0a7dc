"""What travels through Redis comes back as it was written; anything else is a WireError, never a crash."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import pool, wire
from app.errors import NewerWireError, WireError
from app.wire import BatchHead, BatchOutcome, JobEntry, JobOutcome
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
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False), max_size=5),
    st.binary(max_size=40),
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
    st.builds(pool.Latency, st.none() | moments_ms, st.none() | moments_ms, st.none() | moments_ms),
)
def test_a_worker_record_comes_back_as_it_was_written(
    val_accuracy: float | None, text: str, state: str, latency: pool.Latency
) -> None:
    value = record(val_accuracy=val_accuracy, host=text, run_id=text, state=state, inference_ms=latency)
    assert pool.decode_record(pool.encode_record(value)) == value


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_unreadable_and_never_crash(data: bytes) -> None:
    for decode in (wire.decode_head, wire.decode_outcome, pool.decode_record):
        with pytest.raises(WireError):
            decode(data)


@pytest.mark.parametrize(
    ("decode", "written"),
    [
        (wire.decode_head, wire.encode(head(2))),
        (wire.decode_outcome, wire.encode(outcome(2))),
        (pool.decode_record, pool.encode_record(record())),
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
        (wire.decode_head, wire.encode(msgspec.structs.replace(head(), schema_version=2))),
        (wire.decode_outcome, wire.encode(msgspec.structs.replace(outcome(), schema_version=2))),
        (pool.decode_record, pool.encode_record(msgspec.structs.replace(record(), schema_version=2))),
    ],
    ids=["head", "outcome", "record"],
)
def test_a_value_of_another_schema_version_is_refused_and_says_which(decode: Any, written: bytes) -> None:
    with pytest.raises(WireError, match="version 2"):
        decode(written)


def test_a_field_that_a_later_version_adds_is_no_obstacle() -> None:
    fields = msgspec.msgpack.decode(wire.encode(outcome()))
    assert wire.decode_outcome(msgspec.msgpack.encode(fields | {"new": 1})) == wire.decode_outcome(
        msgspec.msgpack.encode(fields)
    )


def test_a_job_from_before_there_were_owners_is_nobodys_and_older_processes_read_past_one() -> None:
    fields = msgspec.msgpack.decode(wire.encode(head()))
    written = fields["jobs"][0]
    assert len(written) == 6
    old = msgspec.msgpack.encode(fields | {"jobs": [written[:5]]})
    assert wire.decode_head(old).jobs[0].owner == ""
    newer = msgspec.msgpack.encode(fields | {"jobs": [[*written, "something later"]]})
    assert wire.decode_head(newer).jobs[0].forced is False


WRITTEN = {
    "head": (wire.decode_head, wire.encode(head(3))),
    "outcome": (wire.decode_outcome, wire.encode(outcome(3))),
    "job outcome": (wire.decode_job_outcome, wire.encode(outcome().jobs[0])),
    "worker record": (pool.decode_record, pool.encode_record(record())),
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
    for decode, data in ((wire.decode_head, newer), (pool.decode_record, b'{"schema_version": 9}')):
        with pytest.raises(NewerWireError, match="schema version 9"):
            decode(data)
    for garbage in (b"", b"?", msgspec.msgpack.encode({"schema_version": 1})):
        with pytest.raises(WireError) as raised:
            wire.decode_head(garbage)
        assert not isinstance(raised.value, NewerWireError)
