"""Requests of the Open Inference Protocol: tensors as JSON or as bytes after it, and what a contract makes of them.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md; the bytes are
those of its binary tensor extension.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.contract import (
    FREE,
    SCALARS,
    AnyContract,
    Column,
    ColumnsContract,
    Contract,
    TensorContract,
    TensorField,
)
from app.contract.documents import TABLE, Document, read_python_json
from app.contract.tensors import Array, Shaped, flattened
from app.errors import BodyKeyError, InputShapeError, InputTypeError, ParameterError

# Datatypes of the protocol by NumPy name. BF16 has none, so no contract takes it.
DATATYPES = {
    "bool": "BOOL",
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "str": "BYTES",
}
NAMES = {datatype: name for name, datatype in DATATYPES.items()}
# Of columns; all others travel as BYTES, nested ones as JSON in them.
COLUMN_DATATYPES = {"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64"}
# Parameters of a request that are the protocol's or its clients', unless the version has one of this name.
NO_PARAMS = frozenset(
    {"binary_data_output", "content_type", "headers", "priority", "timeout"}
    | {"sequence_id", "sequence_start", "sequence_end"}
)
T = TypeVar("T")
LENGTH_BYTES = 4  # before each element of BYTES
MAX_DIMENSION = 2**40
SHOWN = 80  # characters of a value in an error


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor as the metadata of a model names it; `FREE` where a dimension may have any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class WantedOutput(msgspec.Struct, frozen=True):
    """An output that a request names."""

    name: str
    parameters: dict[str, Any] | None = None


class RequestHead(msgspec.Struct, frozen=True):
    """A request without its tensors."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[WantedOutput, ...] | None = None


class GivenTensor(msgspec.Struct):
    """A tensor of a request; it has `data`, or its bytes follow the JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class InferenceRequest(msgspec.Struct):
    """The tensors and parameters of a request, and not yet compared with a contract."""

    inputs: list[GivenTensor]
    parameters: dict[str, Any] | None = None

    def document(self, contract: Contract) -> Document:
        """The request as a contract takes it.

        Raises:
            InputShapeError: A tensor is missing, unknown, or of a shape that no column has.
            InputTypeError: A tensor is not of the contract's datatype, or holds bytes that spell no value of it.
        """
        known = {each.name for each in contract.params}
        given = self.parameters or {}
        params = {
            name: each for name, each in given.items() if name in known or name not in NO_PARAMS
        } or None
        if isinstance(contract, AnyContract):
            nested = {each.name: _nested(_texts(each), each.shape) for each in self.inputs}
            [first, *others] = [*nested.items()]
            return Document("inputs", nested if others or first[0] != "input-0" else first[1], params)
        by_name = self._by_name(contract)
        if isinstance(contract, ColumnsContract):
            return Document(TABLE, _table(by_name, contract), params)
        fields = _fields(contract)
        tensors = {field.name: _tensor(by_name, place, field) for place, field in enumerate(fields)}
        return Document("inputs", tensors.get(None, tensors), params)

    def _by_name(self, contract: Contract) -> dict[str, GivenTensor]:
        expected = inputs_of(contract)
        if len(expected) == 1 == len(self.inputs) and expected[0].name == "input-0":
            return {"input-0": self.inputs[0]}  # it has no name that could be wrong
        by_name = {each.name: each for each in self.inputs}
        for name, each in by_name.items():
            known = next((one for one in expected if one.name == name), None)
            if known is None:
                names = ", ".join(one.name for one in expected)
                raise InputShapeError(f"the model has no input {name[:SHOWN]!r}; expected {names}")
            _check_datatype(each, known.datatype)
        return by_name


def inputs_of(contract: Contract) -> list[TensorMetadata]:
    """The inputs of a contract; none where nothing says what the model takes."""
    return _metadata(contract, "input")


def outputs_of(outputs: Contract | None) -> list[TensorMetadata]:
    """The outputs that a signature states, in the form of a contract."""
    return _metadata(outputs, "output")


def _metadata(contract: Contract | None, kind: str) -> list[TensorMetadata]:
    if contract is None or isinstance(contract, AnyContract):
        return []
    if isinstance(contract, ColumnsContract):
        return [
            TensorMetadata(
                _name(column.name, place, kind), COLUMN_DATATYPES.get(column.type.kind, "BYTES"), (FREE, 1)
            )
            for place, column in enumerate(contract.columns)
        ]
    return [
        TensorMetadata(_name(field.name, place, kind), DATATYPES[field.dtype], field.shape)
        for place, field in enumerate(_fields(contract))
    ]


def _name(name: str | None, place: int, kind: str = "input") -> str:
    return f"{kind}-{place}" if name is None else name


def _fields(contract: Contract) -> tuple[TensorField, ...]:
    assert not isinstance(contract, AnyContract | ColumnsContract)
    return contract.as_tensors.tensors if isinstance(contract, TensorContract) else contract.tensors


def read_request_head(json_length: bytes, body: bytes) -> RequestHead:
    """What a request says beside its tensors; arguments and errors as of `read_inference_request`."""
    return _decode(_json_part(json_length, body), RequestHead)


def read_inference_request(json_length: bytes, body: bytes) -> InferenceRequest:
    """Read a request.

    Args:
        json_length: The header `Inference-Header-Content-Length`: bytes of the JSON, which tensors follow; empty where
            the whole body is JSON.

    Raises:
        ParameterError: The header is no number, or larger than the body.
        BodyNotJsonError: It is not JSON.
        BodyKeyError: It is no request of the protocol.
        InputShapeError: A tensor does not hold as many values as its shape says.
        InputTypeError: A tensor's bytes are none of its datatype.
    """
    text = _json_part(json_length, body)
    request = _decode(text, InferenceRequest)
    if not request.inputs:
        raise BodyKeyError("the request has no inputs; expected at least one tensor")
    if len({each.name for each in request.inputs}) < len(request.inputs):
        raise BodyKeyError("two inputs have the same name; expected each input once")
    place = len(text)
    for each in request.inputs:
        if each.datatype not in NAMES:
            raise InputTypeError(
                f"input {each.name!r} has the datatype {each.datatype[:SHOWN]!r}; expected one of {', '.join(NAMES)}"
            )
        if not all(0 <= size < MAX_DIMENSION for size in each.shape):
            raise InputShapeError(f"input {each.name!r} has the shape {each.shape}; expected sizes from 0")
        size = (each.parameters or {}).get("binary_data_size")
        if size is None:
            _read_json(each)
            continue
        if type(size) is not int or not 0 <= size <= len(body) - place or each.data is not None:
            raise InputShapeError(
                f"input {each.name!r} has binary_data_size {repr(size)[:SHOWN]}; expected the number of its bytes, "
                f"no data beside it, and as many bytes in the body ({len(body) - place} are left)"
            )
        _read_binary(each, body[place : place + size])
        place += size
    if place < len(body):
        raise InputShapeError(
            f"{len(body) - place} bytes follow the last tensor; expected none: is a binary_data_size wrong?"
        )
    return request


def _json_part(json_length: bytes, body: bytes) -> bytes:
    if not json_length:
        return body
    if not json_length.isdigit() or len(json_length) > 12 or int(json_length) > len(body):
        raise ParameterError(
            f"Inference-Header-Content-Length must be the number of the JSON's bytes, at most {len(body)} here"
        )
    return body[: int(json_length)]


def _decode(text: bytes, kind: type[T]) -> T:
    try:
        try:
            return msgspec.json.decode(text, type=kind)
        except msgspec.ValidationError:
            raise
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            document = msgspec.convert(read_python_json(text), kind)  # which knows NaN
            msgspec.json.encode(document)  # fails where text is no Unicode, which could not be answered
            return document
    except msgspec.ValidationError as error:
        raise BodyKeyError(f"the body is no request of the Open Inference Protocol: {error}") from None
    except UnicodeEncodeError:
        raise BodyKeyError("text holds half of a surrogate pair; expected valid Unicode") from None


def _read_json(tensor: GivenTensor) -> None:
    if tensor.data is None:
        raise InputShapeError(f"input {tensor.name!r} has neither data nor a binary_data_size")
    shape, values = flattened(tensor.data, TensorField(tensor.name, NAMES[tensor.datatype], tensor.shape))
    if len(values) != prod(tensor.shape) or (len(shape) > 1 and shape != tensor.shape):
        raise _wrong_size(
            tensor, f"{len(values)} values" if len(shape) == 1 else f"an array of shape {shape}"
        )
    tensor.data = values


def _read_binary(tensor: GivenTensor, data: bytes) -> None:
    """Set the values: an array, or a list of bytes."""
    if tensor.datatype == "BYTES":
        tensor.data = _elements(tensor, data)
        return
    dtype = np.dtype(NAMES[tensor.datatype]).newbyteorder("<")
    if len(data) != prod(tensor.shape) * dtype.itemsize:
        raise _wrong_size(tensor, f"{len(data)} bytes")
    if dtype.kind == "b" and data.translate(None, b"\x00\x01"):
        raise InputTypeError(f"input {tensor.name!r} holds bytes other than 0 and 1; expected BOOL")
    tensor.data = np.frombuffer(data, dtype)


def _elements(tensor: GivenTensor, data: bytes) -> list[bytes]:
    elements: list[bytes] = []
    place = 0
    while place < len(data):
        start = place + LENGTH_BYTES
        place = start + int.from_bytes(data[start - LENGTH_BYTES : start], "little")
        if place > len(data) or start > len(data):
            raise InputShapeError(
                f"element {len(elements)} of input {tensor.name!r} ends after the tensor's bytes; expected 4 bytes "
                "with each element's length, little-endian, before it"
            )
        elements.append(data[start:place])
    if len(elements) != prod(tensor.shape):
        raise _wrong_size(tensor, f"{len(elements)} elements")
    return elements


def _wrong_size(tensor: GivenTensor, got: str) -> InputShapeError:
    return InputShapeError(
        f"input {tensor.name!r} holds {got}; expected {tensor.datatype} of shape {list(tensor.shape)}"
    )


def _check_datatype(tensor: GivenTensor, datatype: str) -> None:
    if tensor.datatype != datatype:
        raise InputTypeError(
            f"input {tensor.name!r} has the datatype {tensor.datatype}; the model takes {datatype}"
        )


def _tensor(by_name: dict[str, GivenTensor], place: int, field: TensorField) -> Shaped | Array:
    tensor = by_name.get(_name(field.name, place))
    if tensor is None:
        raise InputShapeError(
            f"the input {_name(field.name, place)!r} is missing; expected {field.describe()}"
        )
    _check_datatype(tensor, DATATYPES[field.dtype])
    if isinstance(tensor.data, np.ndarray):
        return tensor.data.reshape(tensor.shape)
    return Shaped(tensor.shape, _texts(tensor))


def _table(
    by_name: dict[str, GivenTensor], contract: ColumnsContract
) -> tuple[dict[str, list[Any]] | list[list[Any]], int]:
    """Columns as `app.contract.tables` takes them, and the number of rows."""
    lengths = {name: len(each.data) for name, each in by_name.items()}
    for name, each in by_name.items():
        if each.shape not in ((lengths[name],), (lengths[name], 1)):
            raise InputShapeError(f"input {name!r} has the shape {list(each.shape)}; expected [n, 1] or [n]")
    if len(set(lengths.values())) > 1:
        raise InputShapeError(
            f"the inputs differ in length ({repr(lengths)[: SHOWN * 4]}); expected one value a row"
        )
    columns = {
        _name(column.name, place): _column(by_name[_name(column.name, place)], column)
        for place, column in enumerate(contract.columns)
        if _name(column.name, place) in by_name
    }
    n_rows = next(iter(lengths.values()))
    return (columns if contract.has_names else list(columns.values())), n_rows


def _column(tensor: GivenTensor, column: Column) -> list[Any]:
    kind = column.type.kind
    if tensor.datatype != "BYTES":
        values: list[Any] = tensor.data.tolist() if isinstance(tensor.data, np.ndarray) else tensor.data
        return values
    if kind == "binary":
        return list(tensor.data)
    texts = _texts(tensor)
    if kind in SCALARS:
        return texts
    return [_from_json(text, row, tensor) for row, text in enumerate(texts)]


def _from_json(text: Any, row: int, tensor: GivenTensor) -> Any:
    try:
        return text if text is None else msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError, TypeError):
        raise InputTypeError(
            f"row {row}, input {tensor.name!r}: got {repr(text)[:SHOWN]}; expected a value as JSON in BYTES"
        ) from None


def _texts(tensor: GivenTensor) -> list[Any]:
    """Values, those that came as bytes as text."""
    if isinstance(tensor.data, np.ndarray):
        values: list[Any] = tensor.data.tolist()
        return values
    try:
        return [each.decode() if type(each) is bytes else each for each in tensor.data]
    except UnicodeDecodeError:
        raise InputTypeError(f"input {tensor.name!r} holds bytes that are not UTF-8; expected text") from None


def _nested(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
    """Values in row-major order as nested lists."""
    nested: NDArray[Any] = np.empty(len(values), object)
    nested[:] = values
    return nested.reshape(shape).tolist()
