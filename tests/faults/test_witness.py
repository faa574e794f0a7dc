"""What hears every outcome: a long run forgets most of it, and still knows what was written twice."""

from __future__ import annotations

from app.ledger.ids import IdSigner
from faults.trial import Witness


def test_an_outcome_that_was_heard_twice_still_counts_once_it_is_forgotten() -> None:
    witness, signer = Witness("redis://"), IdSigner(bytes(32))
    twice, once, late = (signer.new_batch_id(0, 3) for _ in range(3))
    witness.heard |= {twice: [1.0, 2.0], once: [2.0], late: [2.0, 4.0]}
    witness.forget(3.0)
    assert list(witness.heard) == [late]
    assert witness.outcomes_twice() == 3 + 3


def test_an_outcome_that_was_lost_without_its_batch_may_be_written_once_more() -> None:
    witness, signer = Witness("redis://"), IdSigner(bytes(32))
    kept, lost, early = (signer.new_batch_id(at_ms, 1) for at_ms in (1000, 2000, 1000))
    witness.heard |= {kept: [5.0], lost: [5.0], early: [3.0]}
    assert witness.excuse(4.0, 1500) == 1
    witness.heard[kept].append(6.0)
    assert not witness.outcomes_twice()
    for batch in (kept, lost, early):
        witness.heard[batch].append(7.0)
    assert witness.outcomes_twice() == 3
