"""The colours of the page, as people with each kind of colour blindness see them."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from controller.page.pages import FOLDER

STYLES = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(), re.DOTALL)
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#\w{6})", each)) for each in STYLES)
SERIES, STATES = ("s0", "s1", "s2", "s3", "s4", "s5"), ("good", "warn", "bad", "soft", "accent")
LEAST_DIFFERENCE = 12.0  # CIE 1976; a difference of about 2 is just noticed
LEAST_CONTRAST = {SERIES: 3.0, STATES: 4.5}  # WCAG 2.2, 1.4.11 for graphics and 1.4.3 for text
# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(axis=1)


def linear(colour: str) -> NDArray[np.float64]:
    """Linear RGB of `#rrggbb`: float64, shape (3,), in [0, 1]."""
    values = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE L*a*b* of linear RGB; both float64, shape (3,)."""
    ratio = XYZ @ rgb.clip(0, 1) / WHITE
    x, y, z = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(XYZ[1] @ linear(each)) for each in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, LIGHT | DARK], ids=["light", "dark"])
@pytest.mark.parametrize("names", [SERIES, STATES], ids=["series", "states"])
def test_colours_are_told_apart_with_every_kind_of_sight(
    palette: dict[str, str], names: tuple[str, ...]
) -> None:
    for name in names:
        for ground in ("card", "bg", "mark"):
            assert contrast(palette[name], palette[ground]) >= LEAST_CONTRAST[names], (name, ground)
    for sight, matrix in SIGHTS.items():
        seen = {name: lab(np.array(matrix) @ linear(palette[name])) for name in names}
        for one, other in combinations(names, 2):
            assert np.linalg.norm(seen[one] - seen[other]) >= LEAST_DIFFERENCE, (sight, one, other)
