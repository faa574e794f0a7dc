"""What hears every outcome: a long run forgets most of it, and still knows what was written twice."""

from __future__ import annotations

from app.ids import IdSigner
from faults.trial import Witness


def test_an_outcome_that_was_heard_twice_still_counts_once_it_is_forgotten() -> None:
    witness, signer = Witness("redis://"), IdSigner(bytes(32))
    twice, once, late = (signer.new_batch_id(0, 3) for _ in range(3))
    witness.heard |= {twice: [1.0, 2.0], once: [2.0], late: [2.0, 4.0]}
    witness.forget(3.0)
    assert list(witness.heard) == [late]
    assert witness.outcomes_twice() == 3 + 3
