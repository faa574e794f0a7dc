"""The samples of `modelyard benchmark`: digits, noise of their shape, the version's example, or the rows of a file."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.commands.given_samples import example_of, selected_version
from modelyard.errors import ForbiddenError, InputError
from modelyard.inputs import Body, Samples
from modelyard.samples import DrawnSamples, RepeatedSamples, drawn_digits, dummies

if TYPE_CHECKING:
    from modelyard import Client, WorkerInfo
    from modelyard.calls import SubmitOptions

DIGIT_SHAPE = (-1, 1, 28, 28)
MOST_ROWS = 1000  # of a file; a longer run begins anew


def benchmark_samples(
    client: Client, data: str | None, n: int, seed: int | None, selector: SubmitOptions
) -> DrawnSamples:
    """`n` samples.

    Args:
        data: `dummy`, `digits`, `example` or a file; None for noise where the version takes digits, otherwise its
            example.

    Raises:
        InputError: The file cannot be read, or it has no row.
        NoCandidateError: No version with an example is served.
    """
    if data == "digits":
        return drawn_digits(n, seed)
    if data == "dummy":
        return dummies(n, seed)
    if data not in (None, "example"):
        return RepeatedSamples(_rows(Path(str(data))), n)
    version = _version(client, selector, is_needed=data == "example")
    if data is None and (version is None or not version.input or version.input.shape == DIGIT_SHAPE):
        return dummies(n, seed)
    example, _ = example_of(version)
    return RepeatedSamples([Body(example)], n)


def _version(client: Client, selector: SubmitOptions, *, is_needed: bool) -> WorkerInfo | None:
    try:
        return selected_version(client, selector)
    except ForbiddenError:  # a key that may only predict
        if is_needed:
            raise
        return None


def _rows(path: Path) -> list[Samples]:
    """The first rows of a file, one sample each; a JSON file is one request body."""
    from modelyard.batch.sources import count, cut, open_source

    if path.suffix.lower() == ".json":
        return [Body(path.read_bytes())]
    source = open_source(path)
    chunks = source.chunks(0, MOST_ROWS)
    rows = (cut(chunk, place, place + 1) for chunk in chunks for place in range(count(chunk)))
    samples = list(map(source.encodings[0], islice(rows, MOST_ROWS)))
    if not samples:
        raise InputError(f"{path} has no row")
    return samples
