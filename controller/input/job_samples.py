"""From a request's body to the samples of a job: parse it, choose the queue that it fits, and cast its numbers."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from app.errors import BodyNotJsonError, InputShapeError
from controller.input import bodies, json_numbers
from controller.routing import Route, Selector, Snapshot, route


class Samples(msgspec.Struct, frozen=True):
    """What a body holds.

    Attributes:
        route: Where it goes.
        data: Samples in the contract's dtype, C order, little-endian.
        n_samples: How many.
    """

    route: Route
    data: bytes
    n_samples: int


def read_samples(
    content_type: bytes,
    body: bytes,
    snapshot: Snapshot,
    selector: Selector,
    certain: Route | None,
    max_samples: int,
) -> Samples:
    """Read a body. A function of its arguments alone, so that any process may run it.

    Args:
        certain: Where it goes whatever it holds, if that is known.

    Raises:
        ModelyardError: The body, or what the selector asks for, is refused.
    """
    given = bodies.parse(content_type, body)
    try:
        chosen = certain or route(snapshot, selector, given.fit)
        contract = chosen.candidate.contract
        numbers = given.numbers(contract)
        data = json_numbers.to_samples(numbers, contract, max_samples)
    except InputShapeError:
        if isinstance(given, json_numbers.Numbers) and len(body) <= json_numbers.EXPLAINED_BYTES:
            with suppress(BodyNotJsonError):  # it is MessagePack
                json_numbers.parse_slow(body)  # a ragged array has a better explanation
        raise
    return Samples(chosen, data, len(numbers.values) // contract.sample_size)
