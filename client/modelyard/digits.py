"""Real handwritten digits at MNIST's size, and the split that excludes some of them from training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import DatasetError

Images: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]
Indices: TypeAlias = NDArray[np.int64]

SIDE_PIXELS = 28
CLASSES = 10
# Training and the client must agree on these; otherwise "held out" digits could be training samples.
VAL_FRACTION = 0.2
SPLIT_SEED = 0

_SCAN_SIDE_PIXELS = 8
_SCAN_MAX = 16
_DIGIT_SIDE_PIXELS = 20  # MNIST's digits fill a 20x20 box in the middle of 28x28


def load_digits_28() -> tuple[Images, Labels]:
    """Read scikit-learn's bundled handwritten digits, enlarged to MNIST's size and centred.

    The file is read without importing scikit-learn, which would take seconds for 70 kB of numbers.

    Returns:
        Images: float32, shape (1797, 1, 28, 28), in [0, 1], light on dark; labels: int64, shape (1797,).

    Raises:
        DatasetError: scikit-learn is not installed or does not bring the file.
    """
    table = np.loadtxt(_bundled_file(), delimiter=",", dtype=np.float32)
    scans = table[:, :-1].reshape(-1, _SCAN_SIDE_PIXELS, _SCAN_SIDE_PIXELS) / np.float32(_SCAN_MAX)
    enlarge = _enlarging_matrix()
    digits = np.clip(enlarge @ scans @ enlarge.T, 0, 1)
    margin = (SIDE_PIXELS - _DIGIT_SIDE_PIXELS) // 2
    images = np.pad(digits, ((0, 0), (margin, margin), (margin, margin)))
    return images[:, np.newaxis].astype(np.float32, copy=False), table[:, -1].astype(np.int64)


def heldout_indices(labels: Labels, val_fraction: float = VAL_FRACTION, seed: int = SPLIT_SEED) -> Indices:
    """Positions of the validation samples, which training does not use: the same fraction of every class.

    Args:
        labels: int64, shape (n_samples,).
        val_fraction: Fraction of each class, above 0 and below 1.
        seed: Selects the samples; the same seed with the same labels gives the same positions.

    Returns:
        int64, sorted.

    Raises:
        DatasetError: A class has too few samples for this split.
    """
    rng = np.random.default_rng(seed)
    parts: list[Indices] = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = round(val_fraction * len(members))
        if not 0 < count < len(members):
            raise DatasetError(
                f"class {label} has {len(members)} samples, of which a validation fraction of {val_fraction} "
                "leaves none on one side; use more samples or another fraction"
            )
        parts.append(rng.permutation(members)[:count])
    if not parts:
        raise DatasetError("the data set holds no sample; expected at least two of every class")
    return np.sort(np.concatenate(parts))


def _bundled_file() -> Path:
    """Path of scikit-learn's digits."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package.submodule_search_locations if package else None) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise DatasetError(
        "the digits come with scikit-learn, which is not installed: pip install 'modelyard-client[digits]'"
    )


def _enlarging_matrix() -> Images:
    """Linear interpolation of one axis from a scan's 8 to 20 pixels: float32, shape (20, 8)."""
    scale = _SCAN_SIDE_PIXELS / _DIGIT_SIDE_PIXELS
    centres = (np.arange(_DIGIT_SIDE_PIXELS) + 0.5) * scale - 0.5
    columns = [np.interp(centres, np.arange(_SCAN_SIDE_PIXELS), unit) for unit in np.eye(_SCAN_SIDE_PIXELS)]
    return np.stack(columns, axis=1).astype(np.float32)
