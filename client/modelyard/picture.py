"""Draws a digit with Unicode block characters for terminals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INK_FROM = 0.35
GLYPHS = np.array([" ", "▄", "▀", "█"])  # by upper pixel (2) and lower pixel (1)


def half_blocks(sample: NDArray[np.float32]) -> str:
    """Draw a sample, two rows of pixels per line of text, without the empty margin around the digit.

    Args:
        sample: float32, shape (..., 28, 28), light on dark in [0, 1].
    """
    ink = sample.reshape(sample.shape[-2:]) >= INK_FROM
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if not rows.size:
        return ""
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    ink = np.pad(ink, ((0, len(ink) % 2), (0, 0)))
    return "\n".join("".join(line) for line in GLYPHS[2 * ink[::2] + ink[1::2]])
