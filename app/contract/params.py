"""Checks the parameters of a request."""

from __future__ import annotations

import math
import re
from typing import Any

import msgspec

from app.contract import Param
from app.contract.column_values import RANGES, TIME, Misfit, convert
from app.contract.documents import Rules
from app.server_errors import ParamsError

encode = msgspec.msgpack.Encoder().encode
DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?", re.ASCII)


def read_params(given: Any, params: tuple[Param, ...], rules: Rules) -> bytes:
    """The parameters in wire form: equal bytes for equal parameters; empty if the request has none.

    Raises:
        ParamsError: A parameter is unknown or has a wrong type, or they are not an object.
    """
    if given is None or (rules == "mlflow" and not params):
        return b""
    if type(given) is not dict:
        raise ParamsError(f"params must be an object; expected {_described(params)}")
    known = {each.name: each for each in params}
    unknown = [name for name in given if name not in known]
    if unknown and rules == "strict":
        raise ParamsError(f"the version takes no parameter {unknown[0]!r}; expected {_described(params)}")
    taken = {each.name: _value(given[each.name], each) for each in params if each.name in given}
    return encode(taken) if taken else b""


def _described(params: tuple[Param, ...]) -> str:
    return ", ".join(f"{each.name} ({_type(each)})" for each in params) or "none at all"


def _type(param: Param) -> str:
    described = param.value_type.describe()
    return f"list of {described}" if param.is_list else described


def _value(value: Any, param: Param) -> Any:
    if param.properties:
        return _object(value, param)
    if param.type == "any" or (value is None and not param.is_list):
        return value
    if param.is_list:
        if type(value) is not list:
            raise _misfit(value, param)
        return [_scalar(each, param) for each in value]
    return _scalar(value, param)


def _object(value: Any, param: Param) -> Any:
    try:
        [converted] = convert([value], param.value_type, allows_missing=False, rules="strict")
    except Misfit as misfit:
        raise ParamsError(misfit.at(f"parameter {param.name!r}")) from None
    return converted


def _scalar(value: Any, param: Param) -> Any:
    kind, of_type = param.type, type(value)
    if kind == "boolean" and of_type is bool:
        return value
    if kind in RANGES and of_type is int and RANGES[kind][0] <= value <= RANGES[kind][1]:
        return value
    if kind in ("float", "double") and of_type in (int, float) and math.isfinite(value):
        return float(value)
    if kind == "string" and of_type is str:
        return value
    if kind == "datetime" and of_type is str and (TIME.fullmatch(value) or DATE.fullmatch(value)):
        return value
    raise _misfit(value, param)


def _misfit(value: Any, param: Param) -> ParamsError:
    return ParamsError(Misfit(value, _type(param)).at(f"parameter {param.name!r}"))
