"""JSON Schemas (draft 2020-12) of contracts: the JSON bodies that a version accepts, and its declared outputs.

The enforcing code is `app.contract`; a body that fits its schema may still be refused, for example where the columns of
a table differ in length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import msgspec
import numpy as np

from app.contract import (
    FREE,
    AnyContract,
    Column,
    ColumnsContract,
    ColumnType,
    Contract,
    Param,
    TensorContract,
    TensorField,
    TensorsContract,
)
from app.contract.column_values import HAVE_MISSING, RANGES, TIME
from app.contract.documents import PARAMS
from controller.input.image_layout import takes_images
from controller.input.json_numbers import SAMPLE_KEYS

Schema = dict[str, Any]
ANYTHING: Schema = {}
IMAGE: Schema = {
    "anyOf": [
        {
            "type": "object",
            "required": ["b64"],
            "additionalProperties": False,
            "properties": {"b64": {"type": "string", "contentEncoding": "base64"}},
        },
        {"type": "string", "pattern": "^data:image/(png|jpeg);base64,"},
    ]
}
ROWS: Schema = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_SCALARS: dict[str, Schema] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "format": "int32"},
    "long": {"type": "integer", "format": "int64"},
    "float": {"type": "number", "format": "float"},
    "double": {"type": "number", "format": "double"},
    "string": {"type": "string"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": "string", "pattern": f"^{TIME.pattern}$"},
    "any": ANYTHING,
}


def body_schema(contract: Contract) -> Schema:
    """Schema of a JSON body."""
    forms = _forms(contract)
    params = {PARAMS: params_schema(contract.params)} if contract.params else {}
    objects = [_closed({key: schema, **params}, [key]) for key, schema in forms.items()]
    return {"oneOf": objects}


def params_schema(params: Iterable[Param]) -> Schema:
    """Schema of the parameters of a request."""
    return _closed({each.name: _param(each) for each in params}, [])


def outputs_schema(outputs: Contract | None) -> Schema:
    """Schema of `outputs`: those of the signature, in the form of MLflow's `predictions`."""
    if isinstance(outputs, TensorContract):
        outputs = outputs.as_tensors
    if isinstance(outputs, TensorsContract):
        tensors = {str(each.name): tensor_schema(each, has_missing=True) for each in outputs.tensors}
        return _closed(tensors) if outputs.tensors[0].name is not None else tensors["None"]
    if isinstance(outputs, ColumnsContract):
        values = {str(each.name): _or_null(_type(each.type)) for each in outputs.columns}
        if outputs.has_names:
            return _any_of(
                [_list(_closed(values)), _closed({name: _list(each) for name, each in values.items()})]
            )
        return ANYTHING  # a list of values or of rows, as the model has them
    return ANYTHING


def tensor_schema(field: TensorField, *, has_missing: bool) -> Schema:
    """Nested lists of a tensor's shape."""
    return _nested(field.shape, _element(field.dtype, has_missing and field.dtype.startswith("float")))


def _forms(contract: Contract) -> Mapping[str, Schema]:
    """Schema of the value of each key that holds samples."""
    frames = {"dataframe_split": _split(ANYTHING), "dataframe_records": ROWS}
    if isinstance(contract, AnyContract):
        return dict.fromkeys(SAMPLE_KEYS, ANYTHING) | frames
    if isinstance(contract, TensorContract):
        return dict.fromkeys(SAMPLE_KEYS, _or_images(_spellings(contract), contract)) | frames
    if isinstance(contract, TensorsContract):
        return dict.fromkeys(SAMPLE_KEYS, _or_images(_tensors(contract), contract)) | frames
    return _columns(contract)


def _or_images(numbers: Schema, contract: Contract) -> Schema:
    """The schema of numbers, or of PNG and JPEG images in their place."""
    return _any_of([numbers, IMAGE, _list(IMAGE, 1)]) if takes_images(contract) else numbers


def _spellings(contract: TensorContract) -> Schema:
    """The shapes that `app.contract.spellings` accepts: each sample in its shape, flat, or without unit dimensions."""
    shape = contract.sample_shape
    squeezed = tuple(size for size in shape if size != 1) or (1,)
    samples = dict.fromkeys((shape, squeezed, (prod(shape),)))
    whole = [(FREE, *each) for each in samples] + [each for each in samples if each]
    return _any_of([_nested(each, _element(contract.dtype)) for each in dict.fromkeys(whole)])


def _tensors(contract: TensorsContract) -> Schema:
    fields = contract.tensors
    whole = {str(each.name): tensor_schema(each, has_missing=contract.allows_missing) for each in fields}
    if fields[0].name is None:
        return whole["None"]
    rows = {name: schema.get("items", ANYTHING) for name, schema in whole.items()}
    forms = [_open(whole), _list(_open(rows), 1)]
    return _any_of([*forms, *whole.values()] if len(fields) == 1 else forms)


def _columns(contract: ColumnsContract) -> Mapping[str, Schema]:
    columns = [(str(each.name), _column(each, contract), each.required) for each in contract.columns]
    cells = _any_of([schema for _, schema, _ in columns])
    if not contract.has_names:
        row = {**_list(ANYTHING, len(columns)), "prefixItems": [schema for _, schema, _ in columns]}
        rows = _list(_any_of([row, columns[0][1]]) if len(columns) == 1 else row, 1)
        return dict.fromkeys(SAMPLE_KEYS, rows) | {"dataframe_split": _split(row), "dataframe_records": ROWS}
    required = [name for name, _, is_required in columns if is_required]
    values = {name: schema for name, schema, _ in columns}
    records = _list({"type": "object", "properties": values, "required": required}, 1)
    lists = {name: _list(schema, 1) for name, schema in values.items()}
    forms = [records, {"type": "object", "properties": lists, "required": required}]
    if contract.has_nested or not required:
        forms.append(records["items"])  # the whole object is one row
    if len(columns) == 1:
        forms.append(_list(columns[0][1], 1))
    row = {"type": "array", "items": {} if len(columns) == 1 else cells}
    return dict.fromkeys(SAMPLE_KEYS, _any_of(forms)) | {
        "dataframe_split": {**_split(row), "required": ["columns", "data"]},
        "dataframe_records": records,
    }


def _split(row: Schema) -> Schema:
    names = {"type": "array", "items": {"type": ["string", "integer"]}}
    return _closed({"columns": names, "index": _list(ANYTHING), "data": _list(row, 1)}, ["data"])


def _column(column: Column, contract: ColumnsContract) -> Schema:
    has_gaps = not column.required or (contract.allows_missing and column.type.kind in HAVE_MISSING)
    return _or_null(_type(column.type)) if has_gaps else _type(column.type)


def _type(kind: ColumnType) -> Schema:
    if kind.kind == "object":
        values = {
            str(each.name): _type(each.type) if each.required else _or_null(_type(each.type))
            for each in kind.properties
        }
        return _closed(values, [str(each.name) for each in kind.properties if each.required])
    if kind.kind == "array" and kind.items:
        return _list(_type(kind.items))
    if kind.kind == "map" and kind.items:
        return {"type": "object", "additionalProperties": _type(kind.items)}
    low, high = RANGES.get(kind.kind, (None, None))
    limits = {} if low is None else {"minimum": low, "maximum": high}
    return _SCALARS.get(kind.kind, ANYTHING) | limits


def _param(param: Param) -> Schema:
    schema = _type(param.value_type)
    if param.type == "datetime":
        schema = {"type": "string"}  # a year or a month will do
    default = msgspec.json.decode(param.default)
    schema = _list(schema) if param.is_list else schema
    return _or_null(schema) if default is None else {**_or_null(schema), "default": default}


def _element(dtype: str, has_missing: bool = False) -> Schema:
    if dtype == "str":
        return {"type": "string"}
    if dtype == "bool":
        return {"type": "boolean"}
    if dtype.startswith("float"):
        schema: Schema = {"type": "number"}
        formats = {"float32": "float", "float64": "double"}
        schema |= {"format": formats[dtype]} if dtype in formats else {}
        return _or_null(schema) if has_missing else schema
    limits = np.iinfo(dtype)
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def _nested(shape: tuple[int, ...], element: Schema) -> Schema:
    schema = element
    for size in reversed(shape):
        sizes = {"minItems": 1} if size == FREE else {"minItems": size, "maxItems": size}
        schema = {"type": "array", **sizes, "items": schema}
    return schema


def _list(items: Schema, at_least: int = 0) -> Schema:
    return {"type": "array", "items": items, **({"minItems": at_least} if at_least else {})}


def _closed(properties: Mapping[str, Schema], required: list[str] | None = None) -> Schema:
    return {**_open(properties, required), "additionalProperties": False}


def _open(properties: Mapping[str, Schema], required: list[str] | None = None) -> Schema:
    needed = list(properties) if required is None else required
    return {"type": "object", "properties": dict(properties), "required": needed}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]} if type(schema.get("type")) is str else schema


def _any_of(schemas: list[Schema]) -> Schema:
    different = [each for place, each in enumerate(schemas) if each not in schemas[:place]]
    return different[0] if len(different) == 1 else {"anyOf": different}
