"""Ids: what the pool gave it recognises, what it never gave it refuses."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ledger.ids import BATCH_ID_LENGTH, IdSigner, JobRef, accepted_at_ms, job_id, n_jobs

SIGNER = IdSigner(b"a" * 32)
moments_ms = st.integers(0, 2**48 - 1)
counts = st.integers(1, 65_535)


@given(moments_ms, counts)
def test_a_batch_id_tells_when_it_was_accepted_and_how_many_jobs_it_holds(moment_ms: int, count: int) -> None:
    batch_id = SIGNER.new_batch_id(moment_ms, count)
    assert len(batch_id) == BATCH_ID_LENGTH
    assert (accepted_at_ms(batch_id), n_jobs(batch_id)) == (moment_ms, count)


@given(moments_ms, counts, st.data())
def test_every_job_id_of_a_batch_leads_back_to_its_place(
    moment_ms: int, count: int, data: st.DataObject
) -> None:
    batch_id = SIGNER.new_batch_id(moment_ms, count)
    index = data.draw(st.integers(0, count - 1))
    assert SIGNER.parse_job_id(job_id(batch_id, index)) == JobRef(batch_id, index)


@given(st.text(max_size=50))
def test_text_that_the_pool_never_gave_is_no_job_id(text: str) -> None:
    assert SIGNER.parse_job_id(text) is None
    assert SIGNER.parse_job_id(text + ".0") is None


@given(st.integers(0, BATCH_ID_LENGTH - 1), st.characters(codec="ascii"))
def test_an_id_with_one_changed_character_is_refused(position: int, character: str) -> None:
    batch_id = SIGNER.new_batch_id(1_700_000_000_000, 3)
    changed = batch_id[:position] + character + batch_id[position + 1 :]
    assert SIGNER.is_own(changed) == (changed == batch_id)


def test_the_same_bytes_in_the_other_base64_alphabet_are_not_the_same_id() -> None:
    batch_id = next(
        each for each in (SIGNER.new_batch_id(2**40, 1) for _ in range(1000)) if "-" in each or "_" in each
    )
    other = base64.b64encode(base64.urlsafe_b64decode(batch_id)).decode()
    assert other != batch_id
    assert not SIGNER.is_own(other)


def test_another_pools_id_is_refused() -> None:
    batch_id = IdSigner(b"b" * 32).new_batch_id(1_700_000_000_000, 1)
    assert SIGNER.parse_job_id(job_id(batch_id, 0)) is None


@pytest.mark.parametrize("index", ["", "3", "00", "01", "+1", "-1", " 1", "1.0", "\u0660", "99999999", "x"])
def test_an_index_outside_the_batch_or_oddly_written_is_refused(index: str) -> None:
    batch_id = SIGNER.new_batch_id(1_700_000_000_000, 3)
    assert SIGNER.parse_job_id(f"{batch_id}.{index}") is None


def test_two_batches_accepted_in_the_same_millisecond_have_different_ids() -> None:
    assert len({SIGNER.new_batch_id(1_700_000_000_000, 1) for _ in range(100)}) == 100
