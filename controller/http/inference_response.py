"""Encodes a job's outputs as tensors of the Open Inference Protocol: as JSON, or as bytes after the JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from app.contract import FREE
from app.ledger.wire import Array, JobOutcome
from app.server_errors import ParameterError, WireError
from controller.http.job_json import DTYPES
from controller.input.inference_request import (
    DATATYPES,
    LENGTH_BYTES,
    NAMES,
    RequestHead,
    TensorMetadata,
    WantedOutput,
)

COLUMN = (FREE, 1)
OUTPUT = "output-0"  # name of an unnamed output
KINDS = ((bool, "BOOL", "?"), (int, "INT64", "<i8"), (float, "FP64", "<f8"))


class OutputTensor(msgspec.Struct, frozen=True):
    """A tensor of an answer.

    Attributes:
        values: In row-major order; text where the datatype is BYTES, None where it is missing.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[str | None]


def output_tensors(own: JobOutcome, declared: Sequence[TensorMetadata] = ()) -> list[OutputTensor]:
    """The output tensors of a succeeded job. A single unnamed output gets the declared name and datatype.

    Args:
        declared: Outputs that the version's signature states.

    Raises:
        WireError: It cannot be read.
    """
    tensors = _tensors(own)
    if len(tensors) == len(declared) == 1 and tensors[0].name == OUTPUT:
        return [_as_declared(tensors[0], declared[0])]
    return tensors


def _as_declared(tensor: OutputTensor, declared: TensorMetadata) -> OutputTensor:
    shape = (*tensor.shape, 1) if declared.shape == COLUMN and len(tensor.shape) == 1 else tensor.shape
    named = OutputTensor(declared.name, tensor.datatype, shape, tensor.values)
    if isinstance(tensor.values, list) or declared.datatype in (tensor.datatype, "BYTES"):
        return named
    with np.errstate(all="ignore"):
        cast = tensor.values.astype(DTYPES[NAMES[declared.datatype]])
    is_exact = np.array_equal(cast, tensor.values, equal_nan=tensor.values.dtype.kind == "f")
    return OutputTensor(declared.name, declared.datatype, shape, cast) if is_exact else named


def _tensors(own: JobOutcome) -> list[OutputTensor]:
    outputs = own.outputs
    if isinstance(outputs, Array):
        return [_of_array(OUTPUT, outputs)]
    if isinstance(outputs, bytes):
        return _of_json(orjson.loads(outputs))
    if outputs is not None:
        return [_of_array(name, each) for name, each in outputs.items()]
    if not own.scores:
        return [_of_values(OUTPUT, own.classes)]
    name, data = ("float32", own.scores) if isinstance(own.scores, bytes) else own.scores
    size = len(data) // (DTYPES[name].itemsize * len(own.classes)) if name in DTYPES else 0
    return [_of_array(OUTPUT, Array(name, (len(own.classes), size), data))]


def _of_array(name: str, array: Array) -> OutputTensor:
    try:
        values = np.frombuffer(array.data, DTYPES[array.dtype]).reshape(array.shape)
    except (KeyError, ValueError) as error:
        raise WireError(f"the outcome's outputs cannot be read: {error}") from None
    return OutputTensor(name, DATATYPES[array.dtype], tuple(array.shape), values.reshape(-1))


def _of_json(value: Any) -> list[OutputTensor]:
    """Columns of rows that are objects; an output for each name of an object; anything else as one."""
    if (
        type(value) is list
        and value
        and all(type(row) is dict and row.keys() == value[0].keys() for row in value)
    ):
        names = list(value[0])
        columns = [(name, [row[name] for row in value]) for name in names]
        tensors = [_of_values(OUTPUT if names == ["0"] else name, column) for name, column in columns]
        return [msgspec.structs.replace(each, shape=(*each.shape, 1)) for each in tensors]
    if type(value) is dict and value:
        return [_of_values(name, each if type(each) is list else [each]) for name, each in value.items()]
    return [_of_values(OUTPUT, value if type(value) is list else [value])]


def _of_values(name: str, values: Sequence[Any]) -> OutputTensor:
    """Numbers, booleans and text as they are, anything else as JSON in BYTES."""
    kinds = set(map(type, values))
    if kinds == {int, float} or kinds == {float, type(None)}:
        kinds = {float}
    for kind, datatype, dtype in KINDS:
        if kinds == {kind}:
            try:
                return OutputTensor(name, datatype, (len(values),), np.array(values, dtype))
            except OverflowError:  # a whole number beyond 64 bits
                break
    texts = (
        list(values)
        if kinds in ({str}, {str, type(None)})
        else [orjson.dumps(each).decode() for each in values]
    )
    return OutputTensor(name, "BYTES", (len(values),), texts)


def encode_response(
    members: Mapping[str, Any], tensors: Iterable[OutputTensor], asked: RequestHead
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if tensors follow it.

    Args:
        members: Further members of the response.
        asked: Names the requested outputs, and those that are requested as bytes.

    Raises:
        ParameterError: A requested output does not exist.
    """
    by_name = {each.name: each for each in tensors}
    wanted = {each.name: each.parameters or {} for each in asked.outputs or map(WantedOutput, by_name)}
    for name in wanted:
        if name not in by_name:
            raise ParameterError(f"the model has no output {name[:80]!r}; expected {', '.join(by_name)}")
    is_binary = (asked.parameters or {}).get("binary_data_output") is True
    outputs, parts = [], []
    for name, parameters in wanted.items():
        tensor = by_name[name]
        output: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        if parameters.get("binary_data", is_binary) is True:
            parts.append(_bytes(tensor))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = _json_values(tensor)
        outputs.append(output)
    text = orjson.dumps({**members, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join([text, *parts]), len(text)) if parts else (text, None)


def _bytes(tensor: OutputTensor) -> bytes:
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.tobytes()
    elements = [(each or "").encode() for each in tensor.values]
    return b"".join([len(each).to_bytes(LENGTH_BYTES, "little") + each for each in elements])


def _json_values(tensor: OutputTensor) -> Any:
    values = tensor.values
    if isinstance(values, list) or not values.size or values.dtype.kind == "b":
        return values if isinstance(values, list) else values.tolist()
    # float16 keeps all its digits; orjson writes only the digits that distinguish float32 numbers.
    return values.astype(np.float64) if values.dtype == np.float16 else values
