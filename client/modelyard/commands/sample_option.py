"""The one sample that a person names on a command line: a picture, or a held-out digit."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def chosen_sample(image: Path | None, digit: int | None) -> tuple[Any, str, int | None]:
    """The sample (float32, shape (1, 1, 28, 28)), where it is from, and its true class where that is known.

    Args:
        image: A picture of one digit.
        digit: Index of a held-out digit, where there is no picture; None draws one.

    Raises:
        InputError: The picture cannot be read.
        ParameterError: There is no such digit.
    """
    if image is not None:
        from modelyard.images import load_png_28

        return load_png_28(image), image.name, None
    from modelyard.samples import heldout_digit

    index, sample, true_label = heldout_digit(digit)
    return sample, f"held-out digit {index}", true_label
