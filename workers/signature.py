"""Reads a contract from an MLflow signature, in the JSON form of the MLmodel file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from app.contract import (
    DTYPES,
    FREE,
    SCALARS,
    TENSOR_DTYPES,
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
from app.server_errors import ModelContractError


def read_contract(signature: Mapping[str, Any], *, takes_missing: bool = False) -> Contract:
    """The contract of a signature.

    Args:
        signature: `inputs` and `params`, each a list in MLflow's JSON or absent; `is_own` if the model's own type
            hints check its input; `allows_missing` if the version declares whether it takes missing values;
            `image_scale` if it declares the value of a white pixel. Empty if the version has no signature.
        takes_missing: Default for missing values in tensors, if the version declares nothing. Columns take them by
            default, as far as their types allow.

    Raises:
        ModelContractError: Modelyard cannot enforce the signature.
    """
    params = tuple(map(_param, signature.get("params") or ()))
    inputs: Sequence[Mapping[str, Any]] = signature.get("inputs") or ()
    if not inputs or signature.get("is_own"):
        return AnyContract(params, is_own=bool(signature.get("is_own")))
    if inputs[0]["type"] == "tensor":
        allows_missing = bool(signature.get("allows_missing", takes_missing))
        scale = _image_scale(signature.get("image_scale", 1))
        return _tensors(tuple(map(_field, inputs)), params, allows_missing, scale)
    columns = tuple(map(_column, inputs))
    return ColumnsContract(columns, params, bool(signature.get("allows_missing", True)))


def read_outputs(signature: Mapping[str, Any]) -> Contract | None:
    """The outputs that a signature states, in the form of a contract; None where it states none that are known."""
    if not signature.get("outputs"):
        return None
    try:
        return read_contract({"inputs": signature["outputs"]})
    except ModelContractError:
        return None


def _image_scale(declared: Any) -> int:
    if str(declared) not in ("1", "255"):
        raise ModelContractError(
            f"its tag or metadata modelyard.image_scale is {str(declared)[:80]!r}; expected 1 or 255, "
            "the value of a white pixel"
        )
    return int(declared)


def _tensors(
    fields: tuple[TensorField, ...], params: tuple[Param, ...], allows_missing: bool, image_scale: int
) -> Contract:
    [first, *others] = fields
    is_plain = not others and first.name is None and first.dtype in DTYPES and not params
    if is_plain and first.shape[:1] == (FREE,) and FREE not in first.shape[1:] and not allows_missing:
        return TensorContract(first.dtype, first.shape[1:], image_scale)
    merges = all(each.shape[:1] == (FREE,) for each in fields)
    return TensorsContract(fields, params, allows_missing, merges, image_scale)


def _field(spec: Mapping[str, Any]) -> TensorField:
    named, shape = spec["tensor-spec"]["dtype"], tuple(map(int, spec["tensor-spec"]["shape"]))
    dtype = "str" if np.dtype(named).kind in "OU" else np.dtype(named).name
    if dtype not in TENSOR_DTYPES or any(size < 1 and size != FREE for size in shape):
        raise ModelContractError(
            f"its signature has a tensor of {named} and shape {shape}; expected one of {', '.join(TENSOR_DTYPES)}, "
            "and dimensions of at least 1, or -1 where they are free"
        )
    return TensorField(spec.get("name"), dtype, shape)


def _column(spec: Mapping[str, Any]) -> Column:
    return Column(spec.get("name"), _type(spec), spec.get("required") is not False)


def _type(spec: Mapping[str, Any]) -> ColumnType:
    kind = spec["type"]
    if kind in SCALARS or kind == "any":
        return ColumnType(kind)
    if kind == "array":
        return ColumnType(kind, _type(spec["items"]))
    if kind == "map":
        return ColumnType(kind, _type(spec["values"]))
    if kind == "object":
        properties = [
            Column(name, _type(each), each.get("required") is not False)
            for name, each in spec["properties"].items()
        ]
        return ColumnType(kind, properties=tuple(properties))
    raise ModelContractError(f"its signature has a column of type {kind}, which JSON cannot represent")


def _param(spec: Mapping[str, Any]) -> Param:
    kind = spec["type"] if spec["type"] in SCALARS else "any"
    properties = _type(spec).properties if spec["type"] == "object" else ()
    is_list = spec.get("shape") is not None
    return Param(spec["name"], kind, json.dumps(spec.get("default")), is_list, properties)
