"""The input contract of a model version: what one sample looks like, and which JSON nestings spell it."""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import prod

import msgspec

DTYPES = (
    "float32",
    "float64",
    "float16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
)
OUTPUT_DTYPES = (*DTYPES, "bool")
SKELETON_CACHE_SAMPLES = 16


class InputContract(msgspec.Struct, frozen=True, dict=True):
    """One tensor with a free first dimension.

    Attributes:
        dtype: NumPy name of the element type, one of `DTYPES`.
        sample_shape: Shape of one sample, without the batch dimension: (1, 28, 28).
    """

    dtype: str
    sample_shape: tuple[int, ...]

    @cached_property
    def is_float(self) -> bool:
        """Whether it takes numbers with a fraction."""
        return self.dtype.startswith("float")

    @cached_property
    def sample_size(self) -> int:
        """Elements of one sample."""
        return prod(self.sample_shape)

    def accepts(self, n_values: int, skeleton: bytes) -> bool:
        """Whether a JSON array with this many numbers and this nesting spells whole samples.

        Args:
            n_values: Numbers in the array.
            skeleton: The array's brackets and commas, all else removed.
        """
        n_samples, rest = divmod(n_values, self.sample_size)
        if rest or not n_samples:
            return False
        if n_samples <= SKELETON_CACHE_SAMPLES:
            return skeleton in _cached_skeletons(self.sample_shape, n_samples)
        return skeleton in _skeletons(self.sample_shape, n_samples)

    def describe(self) -> str:
        """The contract in words, for error messages."""
        size = self.sample_size
        shape = ", ".join(map(str, ("n", *self.sample_shape)))
        return (
            f"{self.dtype} numbers of shape ({shape}); one sample may also be a flat list of {size} numbers"
        )


@lru_cache(maxsize=256)
def spellings(sample_shape: tuple[int, ...], n_samples: int) -> frozenset[tuple[int, ...]]:
    """Array shapes that spell `n_samples` samples, all with the same elements in the same order.

    With the batch dimension; each sample flat; unit dimensions left out; and for one sample also without the
    batch dimension.
    """
    squeezed = tuple(d for d in sample_shape if d != 1) or (1,)
    one = {sample_shape, (prod(sample_shape),), squeezed}
    shapes = {(n_samples, *shape) for shape in one}
    return frozenset(shapes | {shape for shape in one if shape} if n_samples == 1 else shapes)


def skeleton(shape: tuple[int, ...]) -> bytes:
    """Brackets and commas of a JSON array of this shape, which has at least one dimension."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _skeletons(sample_shape: tuple[int, ...], n_samples: int) -> tuple[bytes, ...]:
    # A few, of different lengths: to compare is quicker than to hash what is looked for.
    return tuple(skeleton(shape) for shape in spellings(sample_shape, n_samples))


_cached_skeletons = lru_cache(maxsize=256)(_skeletons)
