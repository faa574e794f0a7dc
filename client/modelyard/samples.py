"""Samples to send: digits that were not used in training, dummies of the same shape, and given ones repeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelyard.digits import SIDE_PIXELS, heldout_indices, load_digits_28
from modelyard.errors import ParameterError
from modelyard.inputs import Samples


@dataclass(frozen=True)
class LabelledSamples:
    """Samples with their true classes.

    Attributes:
        images: float32, shape (n_samples, 1, 28, 28), in [0, 1].
        labels: int64, shape (n_samples,), or None for dummies.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int) -> NDArray[np.float32]:
        """One sample, shape (1, 1, 28, 28)."""
        return self.images[index : index + 1]

    def label(self, index: int) -> int | None:
        """True class of one sample, if it has one."""
        return None if self.labels is None else int(self.labels[index])


@dataclass(frozen=True)
class RepeatedSamples:
    """Samples of any contract, one after the other and then from the first one again.

    Attributes:
        given: At least one.
        n: Number of samples in all.
    """

    given: Sequence[Samples]
    n: int

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int) -> Samples:
        """One sample."""
        return self.given[index % len(self.given)]

    def label(self, index: int) -> int | None:
        """No true class is known."""
        return None


DrawnSamples = LabelledSamples | RepeatedSamples


def heldout_digits() -> LabelledSamples:
    """All handwritten digits of the validation split.

    Raises:
        DatasetError: scikit-learn, which contains the digits, is not installed.
    """
    images, labels = load_digits_28()
    kept = heldout_indices(labels)
    return LabelledSamples(images[kept], labels[kept])


def drawn_digits(n: int, seed: int | None = None) -> LabelledSamples:
    """Draw `n` held-out digits, each equally often (none twice before all were drawn once)."""
    digits = heldout_digits()
    assert digits.labels is not None
    rng = np.random.default_rng(seed)
    rounds = -(-n // len(digits))
    order = np.concatenate([rng.permutation(len(digits)) for _ in range(rounds)])[:n]
    return LabelledSamples(digits.images[order], digits.labels[order])


def one_of_each_digit() -> LabelledSamples:
    """The first held-out digit of every class, 0 to 9: always the same ones, independent of any model."""
    digits = heldout_digits()
    assert digits.labels is not None
    _, first = np.unique(digits.labels, return_index=True)
    return LabelledSamples(digits.images[first], digits.labels[first])


def dummies(n: int, seed: int | None = None) -> LabelledSamples:
    """Create `n` samples of uniform noise, with the size and the cost of a digit."""
    noise = np.random.default_rng(seed).random((n, 1, SIDE_PIXELS, SIDE_PIXELS), dtype=np.float32)
    return LabelledSamples(noise, None)


def heldout_digit(index: int | None) -> tuple[int, NDArray[np.float32], int]:
    """One held-out digit, a random one unless its index is given.

    Returns:
        Its index, the image (float32, shape (1, 1, 28, 28)) and its true class.

    Raises:
        ParameterError: No held-out digit has this index.
    """
    digits = heldout_digits()
    assert digits.labels is not None
    if index is None:
        index = int(np.random.default_rng().integers(len(digits)))
    if not 0 <= index < len(digits):
        raise ParameterError(f"there is no held-out digit {index}; choose 0 to {len(digits) - 1}")
    return index, digits.images[index : index + 1], int(digits.labels[index])
