"""The figures show what was measured."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.figures import confusion_counts, confusion_matrix, learning_curve
from training.fit import EpochResult


def test_confusions_are_counted_by_true_and_predicted_class() -> None:
    counts = confusion_counts(np.array([3, 3, 3, 0]), np.array([3, 5, 5, 0]))
    assert {(t, p): counts[t, p] for t, p in np.argwhere(counts)} == {(3, 3): 1, (3, 5): 2, (0, 0): 1}


def test_figures_can_be_drawn_of_a_single_epoch_and_of_missing_classes(tmp_path: Path) -> None:
    learning_curve([EpochResult(1, 1.0, 0.9, 0.5)], "one epoch").savefig(tmp_path / "curve.png")
    confusion_matrix(np.array([1]), np.array([2]), "one sample").savefig(tmp_path / "matrix.png")
    for name in ("curve.png", "matrix.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 500
