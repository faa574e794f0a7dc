"""The contract of a model version: its inputs according to its MLflow signature.

There are four kinds: one plain tensor, several tensors, the columns of a table, or any input. The controller enforces
a contract without MLflow; `workers.signature` reads it from a signature.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from math import prod
from typing import TypeAlias

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
TENSOR_DTYPES = (*OUTPUT_DTYPES, "str")
SCALARS = ("boolean", "integer", "long", "float", "double", "string", "binary", "datetime")
NESTED = ("array", "object", "map", "any")
SKELETON_CACHE_SAMPLES = 16
SHOWN = 80  # characters of a value in an error
FREE = -1  # a dimension of any size


class TensorContract(msgspec.Struct, frozen=True, dict=True, tag_field="kind", tag="tensor"):
    """One plain tensor: finite numbers, a free first dimension, fixed others, no name and no parameters.

    Attributes:
        dtype: NumPy name of the element type, one of `DTYPES`.
        sample_shape: Shape of one sample, without the batch dimension: (1, 28, 28).
        image_scale: Value of a white pixel where an image is given for a floating-point tensor: 1 or 255.
    """

    dtype: str
    sample_shape: tuple[int, ...]
    image_scale: int = 1

    @property
    def params(self) -> tuple[Param, ...]:
        """Parameters of a request: none."""
        return ()

    @cached_property
    def as_tensors(self) -> TensorsContract:
        """The same contract in the form for several tensors, with one tensor."""
        return TensorsContract(
            (TensorField(None, self.dtype, (FREE, *self.sample_shape)),), image_scale=self.image_scale
        )

    @cached_property
    def is_float(self) -> bool:
        """Whether its dtype is a floating-point type."""
        return self.dtype.startswith("float")

    @cached_property
    def sample_size(self) -> int:
        """Number of elements in one sample."""
        return prod(self.sample_shape)

    def accepts(self, n_values: int, skeleton: bytes) -> bool:
        """Whether a JSON array with this many numbers and this nesting consists of whole samples.

        Args:
            n_values: Number of numbers in the array.
            skeleton: Only the array's brackets and commas.
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


class TensorField(msgspec.Struct, frozen=True):
    """One of several tensors.

    Attributes:
        name: Its name; None if it is the contract's only tensor and has no name.
        dtype: One of `TENSOR_DTYPES`.
        shape: Shape including the first dimension; `FREE` for a dimension of any size.
    """

    name: str | None
    dtype: str
    shape: tuple[int, ...]

    def describe(self) -> str:
        """In words, for error messages."""
        shape = ", ".join("n" if size == FREE else str(size) for size in self.shape)
        return f"{f'{self.name}: ' if self.name else ''}{self.dtype} of shape ({shape})"


class TensorsContract(msgspec.Struct, frozen=True, tag_field="kind", tag="tensors"):
    """Tensors of any shape and dtype: several with names, or one.

    Attributes:
        allows_missing: Whether floating-point tensors may contain NaN, which is null in JSON.
        merges: Whether jobs may share a batch: the model returns one row per input row.
        image_scale: Value of a white pixel where an image is given for a floating-point tensor: 1 or 255.
    """

    tensors: tuple[TensorField, ...]
    params: tuple[Param, ...] = ()
    allows_missing: bool = False
    merges: bool = True
    image_scale: int = 1

    def describe(self) -> str:
        """The contract in words, for error messages."""
        return "; ".join(each.describe() for each in self.tensors)


class ColumnType(msgspec.Struct, frozen=True):
    """Type of a column or of a nested value.

    Attributes:
        kind: One of `SCALARS` or `NESTED`.
        items: Type of an array's items, or of a map's values.
        properties: Properties of an object.
    """

    kind: str
    items: ColumnType | None = None
    properties: tuple[Column, ...] = ()

    def describe(self) -> str:
        """In words, for error messages."""
        if self.kind == "object":
            return "object {" + ", ".join(each.describe() for each in self.properties) + "}"
        return f"{self.kind} of {self.items.describe()}" if self.items else self.kind


class Column(msgspec.Struct, frozen=True):
    """A column of a table, or a property of an object.

    Attributes:
        name: Its name; None if the columns are identified by position.
        required: Whether it must be present.
    """

    name: str | None
    type: ColumnType
    required: bool = True

    def describe(self) -> str:
        """In words, for error messages."""
        optional = "" if self.required else " (optional)"
        return f"{f'{self.name}: ' if self.name is not None else ''}{self.type.describe()}{optional}"


class Param(msgspec.Struct, frozen=True):
    """A parameter of a request in addition to its data.

    Attributes:
        type: One of `SCALARS`, or `any`.
        default: Default value as JSON, used if the request does not give the parameter.
        is_list: Whether it holds a list of the type.
        properties: Properties if it is an object, whose type is `any` for controllers of older releases.
    """

    name: str
    type: str
    default: str = "null"
    is_list: bool = False
    properties: tuple[Column, ...] = ()

    @property
    def value_type(self) -> ColumnType:
        """Type of its value, or of the values of its list."""
        return ColumnType("object" if self.properties else self.type, properties=self.properties)


class ColumnsContract(
    msgspec.Struct, frozen=True, dict=True, cache_hash=True, tag_field="kind", tag="columns"
):
    """The columns of a table: all with names, or all without.

    Attributes:
        allows_missing: Whether required columns of floating-point numbers, text and times may have missing values.
        merges: Whether jobs may share a batch: the model returns one row per input row.
    """

    columns: tuple[Column, ...]
    params: tuple[Param, ...] = ()
    allows_missing: bool = True
    merges: bool = True

    @cached_property
    def has_names(self) -> bool:
        """Whether columns are identified by name and not by position."""
        return self.columns[0].name is not None

    @cached_property
    def is_flat(self) -> bool:
        """Whether all columns have names and hold numbers, booleans or text."""
        kinds = ("boolean", "integer", "long", "float", "double", "string")
        return all(each.name is not None and each.type.kind in kinds for each in self.columns)

    @cached_property
    def has_nested(self) -> bool:
        """Whether a column holds lists or objects: an object of columns then is one row, as in MLflow."""
        return any(each.type.kind in ("array", "object") for each in self.columns)

    def describe(self) -> str:
        """The contract in words, for error messages."""
        shown = ", ".join(each.describe() for each in self.columns[:20])
        return f"the columns {shown}{', …' if len(self.columns) > 20 else ''}"


class AnyContract(msgspec.Struct, frozen=True, tag_field="kind", tag="any"):
    """Any input: the version has no signature, or its own code enforces its signature.

    Attributes:
        is_own: Whether the model checks its input by its type hints and takes it unparsed.
    """

    params: tuple[Param, ...] = ()
    is_own: bool = False

    @property
    def merges(self) -> bool:
        """Whether jobs may share a batch: never, because rows are not defined."""
        return False

    def describe(self) -> str:
        """The contract in words, for error messages."""
        if self.is_own:
            return "a list of what the model's type hints say"
        return "what the model itself takes: the version has no signature that says more"


Contract: TypeAlias = TensorContract | TensorsContract | ColumnsContract | AnyContract


@lru_cache(maxsize=256)
def spellings(sample_shape: tuple[int, ...], n_samples: int) -> frozenset[tuple[int, ...]]:
    """Array shapes that are accepted for `n_samples` samples, all with the same elements in the same order.

    They are: with the batch dimension; each sample flat; without unit dimensions; and for one sample also without the
    batch dimension.
    """
    squeezed = tuple(d for d in sample_shape if d != 1) or (1,)
    one = {sample_shape, (prod(sample_shape),), squeezed}
    shapes = {(n_samples, *shape) for shape in one}
    return frozenset(shapes | {shape for shape in one if shape} if n_samples == 1 else shapes)


def skeleton(shape: tuple[int, ...]) -> bytes:
    """Brackets and commas of a JSON array of this shape with at least one dimension."""
    text = b""
    for size in reversed(shape):
        text = b"[" + b",".join([text] * size) + b"]"
    return text


def _skeletons(sample_shape: tuple[int, ...], n_samples: int) -> tuple[bytes, ...]:
    # A tuple of few entries with different lengths: comparing is faster than hashing the wanted one.
    return tuple(skeleton(shape) for shape in spellings(sample_shape, n_samples))


_cached_skeletons = lru_cache(maxsize=256)(_skeletons)
