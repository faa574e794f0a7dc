"""Reads a request's body by its content type: JSON (see `json_numbers`), NumPy files, MessagePack or raw bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import orjson
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.contract import TensorContract, documents, skeleton, spellings
from app.contract.documents import read_msgpack
from app.contract.npy import read_npy
from app.server_errors import (
    BodyKeyError,
    BodyNotJsonError,
    InputEmptyError,
    InputNotFiniteError,
    InputNotNumericError,
    InputShapeError,
    TooLargeError,
    UnsupportedTypeError,
)
from controller.input import json_numbers
from controller.input.json_numbers import SAMPLE_KEYS, Numbers, little_endian

JSON = b"application/json"
OCTETS = b"application/octet-stream"
MSGPACK = documents.MSGPACK[0]
NPY = b"application/x-npy"
NPZ = b"application/x-npz"
CSV = b"text/csv"
ARROW_STREAM = b"application/vnd.apache.arrow.stream"
ARROW_FILE = b"application/vnd.apache.arrow.file"
PARQUET = b"application/vnd.apache.parquet"
TABLES = frozenset({ARROW_STREAM, ARROW_FILE, PARQUET, b"application/x-parquet"})
MULTIPART = b"multipart/form-data"
IMAGES = frozenset({b"image/png", b"image/jpeg", b"image/jpg", MULTIPART})
# Types that may be compressed, most with large decoders of native code: only a reader process reads them.
DECODED = TABLES | IMAGES | {NPZ}
ACCEPTED_TYPES = ", ".join(
    each.decode()
    for each in (
        *(JSON, OCTETS, NPY, NPZ, MSGPACK, CSV, ARROW_STREAM, ARROW_FILE, PARQUET),
        *(b"image/png", b"image/jpeg", MULTIPART),
    )
)
# Content types under which clients send JSON, such as curl's default.
ALSO_JSON = frozenset({b"", b"text/plain", b"text/json", b"application/x-www-form-urlencoded"})
SCORING_TYPES = (JSON, CSV, PARQUET)  # of MLflow's scoring server


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array with its own dtype and shape.

    Attributes:
        values: Numbers, shape (n_values,), C order.
        shape: Original shape of the array.
        largest: The largest magnitude among the numbers.
    """

    values: NDArray[Any]
    shape: tuple[int, ...]
    largest: float

    def fit(self, contract: TensorContract) -> bool:
        """Whether the numbers form whole samples of the contract."""
        n_samples, rest = divmod(len(self.values), contract.sample_size)
        return not rest and self.shape in spellings(contract.sample_shape, n_samples)

    def numbers(self, _: TensorContract) -> Tensor:
        """The numbers, unchanged."""
        return self


@dataclass(frozen=True, slots=True)
class Octets:
    """Raw samples in the contract's dtype, C order, little-endian."""

    data: bytes

    def fit(self, contract: TensorContract) -> bool:
        """Whether the number of bytes fits whole samples of the contract."""
        sample_bytes = contract.sample_size * little_endian(contract.dtype).itemsize
        return bool(self.data) and len(self.data) % sample_bytes == 0

    def numbers(self, contract: TensorContract) -> Tensor:
        """The bytes as numbers of this contract's dtype.

        Raises:
            InputShapeError: They do not form whole samples.
            InputNotFiniteError: A number is NaN or infinite.
        """
        if not self.fit(contract):
            raise InputShapeError(
                f"{len(self.data)} bytes do not form whole samples; expected little-endian {contract.describe()}"
            )
        values = np.frombuffer(self.data, little_endian(contract.dtype))
        return _tensor(values, (len(values) // contract.sample_size, *contract.sample_shape))


Body = Numbers | Tensor | Octets
MAX_LISTS_BYTES = 2**19  # traversing Python lists takes about two seconds per MiB and blocks the event loop


def check_scoring_type(content_type: bytes) -> None:
    """Refuse a content type that MLflow's scoring server does not read, in its words; a last semicolon is ignored.

    Raises:
        UnsupportedTypeError: It is of another type.
    """
    kind, *parameters = [part.strip().lower() for part in content_type.split(b";")]
    given = dict(part.partition(b"=")[::2] for part in parameters if part)
    if given.pop(b"charset", b"utf-8").strip(b'"') != b"utf-8":
        raise UnsupportedTypeError("The scoring server only supports UTF-8")
    if given:
        names = b", ".join(sorted(given)).decode("latin-1")
        raise UnsupportedTypeError(f"Unrecognized content type parameters: {names}")
    if kind not in SCORING_TYPES:
        known = b", ".join(SCORING_TYPES).decode()
        raise UnsupportedTypeError(f"This predictor only supports the following content types: {known}")


def media_type(content_type: bytes) -> bytes:
    """The content type without parameters, in lower case."""
    return content_type.partition(b";")[0].strip().lower()


def is_decoded(content_type: bytes) -> bool:
    """Whether only a reader process may read such a body, whatever its size."""
    return content_type != JSON and media_type(content_type) in DECODED


def parse(content_type: bytes, body: bytes) -> Body:
    """Read a body. A body with an unknown content type is read as JSON, if it is JSON.

    Raises:
        UnsupportedTypeError: The content type is unknown, and the body is not JSON.
        InputError: It does not match its content type, or contains values other than numbers.
    """
    if content_type == JSON:
        return json_numbers.parse(body)
    kind = media_type(content_type)
    read = _READERS.get(kind)
    if read:
        return read(body)
    try:
        return json_numbers.parse(body)
    except BodyNotJsonError:
        require_json(content_type)
        raise


def require_json(content_type: bytes) -> None:
    """Refuse the content type of a body that is not JSON, unless it says that it is JSON.

    Raises:
        UnsupportedTypeError: It says something else.
    """
    kind = media_type(content_type)
    if kind != JSON and kind not in ALSO_JSON and not kind.endswith(b"+json"):
        raise UnsupportedTypeError(
            f"the body's content type is not supported; expected one of {ACCEPTED_TYPES}"
        ) from None


def _read_octets(body: bytes) -> Body:
    if not body:
        raise InputEmptyError("the body is empty; expected at least one sample")
    return _read_npy(body) if body.startswith(npy.MAGIC_PREFIX) else Octets(body)


def _read_npy(body: bytes) -> Tensor:
    array = read_npy(body)
    if array.dtype.kind not in "fiu" or not array.ndim:
        raise InputNotNumericError(
            f"the file holds {array.dtype.name} of shape {array.shape}; expected an array of numbers"
        )
    if not array.size:
        raise InputEmptyError("the array holds no sample; expected at least one")
    return _tensor(np.ascontiguousarray(array).reshape(-1), array.shape)


def _read_msgpack(body: bytes) -> Body:
    document = read_msgpack(body)
    if not isinstance(document, dict) or len(document) != 1 or not document.keys() <= set(SAMPLE_KEYS):
        raise BodyKeyError(f"expected a map with exactly one key, one of {', '.join(SAMPLE_KEYS)}")
    (value,) = document.values()
    if isinstance(value, list) and len(body) > MAX_LISTS_BYTES:
        raise TooLargeError(
            f"{len(body)} bytes of nested lists; at most {MAX_LISTS_BYTES} are supported: send the samples as "
            f"raw bytes (bin)"
        )
    return _read_octets(value) if isinstance(value, bytes) else _read_lists(value)


def _read_lists(value: Any) -> Numbers:
    # Via JSON, which takes a tenth of the time; values that JSON cannot represent, or invalid ones, are traversed.
    with suppress(orjson.JSONEncodeError):
        numbers = json_numbers.parse_fast(orjson.dumps({SAMPLE_KEYS[0]: value}))
        shape = _outer_shape(value)
        if numbers is not None and len(numbers.values) == prod(shape) and numbers.skeleton == skeleton(shape):
            return numbers
    return json_numbers.from_list(value)


def _outer_shape(value: Any) -> tuple[int, ...]:
    """The shape of nested lists, if they are not ragged."""
    shape = []
    while isinstance(value, list) and value:
        shape.append(len(value))
        value = value[0]
    return tuple(shape)


def _tensor(values: NDArray[Any], shape: tuple[int, ...]) -> Tensor:
    largest = float(max(abs(float(values.min())), abs(float(values.max()))))
    if not np.isfinite(largest):
        raise InputNotFiniteError("the array holds NaN or an infinity; expected finite numbers")
    return Tensor(values, shape, largest)


_READERS: dict[bytes, Callable[[bytes], Body]] = {
    JSON: json_numbers.parse,
    OCTETS: _read_octets,
    NPY: _read_npy,
    **dict.fromkeys(documents.MSGPACK, _read_msgpack),
}
