"""Reads requests of the Open Inference Protocol, with tensors in JSON or binary, and converts them for a contract.

Specification: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md.
Binary tensors follow its binary tensor data extension.
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
    SHOWN,
    AnyContract,
    Column,
    ColumnsContract,
    Contract,
    TensorContract,
    TensorField,
)
from app.contract.documents import TABLE, Document, read_python_json
from app.contract.tensors import Array, Shaped, flattened
from app.server_errors import BodyKeyError, InputShapeError, InputTypeError, ParameterError

# Datatypes of the protocol by NumPy name. BF16 is missing because NumPy has no such type.
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
# Datatypes of columns by type. Other types travel as BYTES; nested values are JSON in BYTES.
COLUMN_DATATYPES = {"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64"}
# Request parameters that the protocol or its clients define. They are ignored unless the version has a parameter of the
# same name.
NO_PARAMS = frozenset(
    {"binary_data_output", "content_type", "headers", "priority", "timeout"}
    | {"sequence_id", "sequence_start", "sequence_end"}
)
T = TypeVar("T")
LENGTH_BYTES = 4  # before each element of BYTES
MAX_DIMENSION = 2**40


class TensorMetadata(msgspec.Struct, frozen=True):
    """A tensor in the metadata of a model. A dimension of any size is `FREE`."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class WantedOutput(msgspec.Struct, frozen=True):
    """An output that a request asks for."""

    name: str
    parameters: dict[str, Any] | None = None


# Parameters of tensors that ask for extensions which this server lacks. Without them the answer would be another one.
LACKING = ("shared_memory_region", "classification")


class RequestHead(msgspec.Struct, frozen=True):
    """A request without its tensors."""

    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: tuple[WantedOutput, ...] | None = None


class GivenTensor(msgspec.Struct):
    """A tensor of a request. Its values are in `data`, or in the bytes after the JSON."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: Any = None


class InferenceRequest(msgspec.Struct):
    """The tensors and parameters of a request that has not been compared with a contract yet."""

    inputs: list[GivenTensor]
    parameters: dict[str, Any] | None = None

    def document(self, contract: Contract) -> Document:
        """The request in the form that a contract takes.

        Raises:
            InputShapeError: A tensor is missing or unknown, or the shape of a column is neither [n] nor [n, 1].
            InputTypeError: A tensor does not have the contract's datatype, or its bytes cannot be decoded.
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
            return {"input-0": self.inputs[0]}  # the contract's only input has no name, so any name fits
        by_name = {each.name: each for each in self.inputs}
        for name, each in by_name.items():
            known = next((one for one in expected if one.name == name), None)
            if known is None:
                names = ", ".join(one.name for one in expected)
                raise InputShapeError(f"the model has no input {name[:SHOWN]!r}; expected {names}")
            _check_datatype(each, known.datatype)
        return by_name


def inputs_of(contract: Contract) -> list[TensorMetadata]:
    """The inputs of a contract; empty for a version without a signature."""
    return _metadata(contract, "input")


def outputs_of(outputs: Contract | None) -> list[TensorMetadata]:
    """The outputs that a signature declares, in the form of a contract."""
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
    """Read a request without its tensors.

    Arguments and errors are those of `read_inference_request`. `ParameterError` also says that an output is asked for
    in a form of an extension that this server lacks.
    """
    head = _decode(_json_part(json_length, body), RequestHead)
    for each in head.outputs or ():
        _check_extensions("output", each.name, each.parameters)
    return head


def read_inference_request(json_length: bytes, body: bytes) -> InferenceRequest:
    """Read a request.

    Args:
        json_length: Value of the header `Inference-Header-Content-Length`: size of the JSON in bytes, if binary tensors
            follow it; empty if the whole body is JSON.

    Raises:
        ParameterError: The header is not a number, or it exceeds the size of the body.
        BodyNotJsonError: The JSON is malformed.
        BodyKeyError: The JSON is not a request of the protocol.
        InputShapeError: The number of values of a tensor does not match its shape.
        InputTypeError: The bytes of a tensor are not values of its datatype.
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
        _check_extensions("input", each.name, each.parameters)
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
            document = msgspec.convert(read_python_json(text), kind)  # accepts NaN
            msgspec.json.encode(document)  # raises for half of a surrogate pair, which no answer can contain
            return document
    except msgspec.ValidationError as error:
        raise BodyKeyError(f"the body is not a request of the Open Inference Protocol: {error}") from None
    except UnicodeEncodeError:
        raise BodyKeyError("text holds half of a surrogate pair; expected valid Unicode") from None


def _check_extensions(kind: str, name: str, parameters: dict[str, Any] | None) -> None:
    for each in LACKING:
        if each in (parameters or {}):
            raise ParameterError(
                f"{kind} {name[:SHOWN]!r} has the parameter {each}, an extension that this server lacks; expected the "
                "tensor itself, as JSON or as bytes"
            )


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
    """Decode the values from bytes: to an array, or for BYTES to a list of bytes."""
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
    """The columns in the form that `app.contract.tables` reads, and the number of rows."""
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
    """The values, with bytes decoded to text."""
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
