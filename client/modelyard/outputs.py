"""Turns the JSON of a model's outputs into arrays and tables."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import ConfigurationError, OutputsNotTabularError

Arrays: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]
NONE = type(None)
EXACT_IN_FLOAT = 2**53  # the largest magnitude up to which float64 holds every integer
Dtypes: TypeAlias = str | Mapping[str, str] | None


def to_arrays(outputs: Any, dtypes: Dtypes) -> Arrays:
    """Outputs as one array, or as an array for each name.

    Args:
        outputs: Nested lists, a dict of them, or a list of dicts, one a row.
        dtypes: The model's own dtypes, where they are known.
    """
    columns = _by_name(outputs)
    if columns is None:
        return _array(outputs, dtypes if isinstance(dtypes, str) else None)
    of = dtypes if isinstance(dtypes, Mapping) else {}
    return {name: _array(values, of.get(name)) for name, values in columns.items()}


def to_table(outputs: Any, dtypes: Dtypes) -> Any:
    """Outputs as a table of pandas, or of polars if pandas is not installed; columns without names are numbered.

    Raises:
        OutputsNotTabularError: The columns have different numbers of rows.
        ConfigurationError: Neither is installed.
    """
    arrays = to_arrays(outputs, dtypes)
    columns: dict[str, NDArray[Any]] = {}
    for name, array in arrays.items() if isinstance(arrays, dict) else {"": arrays}.items():
        if array.ndim == 2 and not name:
            columns |= {str(place): array[:, place] for place in range(array.shape[1])}
        else:
            columns[name or "0"] = np.atleast_1d(array)
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise OutputsNotTabularError(
            f"the outputs are no table: their numbers of rows differ ({named}); use to_numpy() or outputs"
        )
    return make_frame(columns)


def make_frame(columns: Mapping[str, NDArray[Any]]) -> Any:
    """A table of pandas or polars.

    Raises:
        ConfigurationError: Neither is installed.
    """
    try:
        import pandas as pd
    except ImportError:
        pass
    else:
        return pd.DataFrame({name: each if each.ndim == 1 else list(each) for name, each in columns.items()})
    try:
        import polars as pl
    except ImportError:
        raise ConfigurationError(
            "a table needs pandas or polars: pip install pandas; without them, use to_numpy() or outputs"
        ) from None
    return pl.DataFrame([_series(name, each, pl) for name, each in columns.items()])


def _series(name: str, array: NDArray[Any], pl: Any) -> Any:
    """A column of polars, which can do little with objects: a type of its own, if that holds all values."""
    if array.dtype.kind == "O":
        with suppress(TypeError, pl.exceptions.PolarsError):  # values of different types
            series = pl.Series(name, array.tolist())
            if series.to_list() == array.tolist():  # it drops keys that the first object does not have
                return series
    return pl.Series(name, array)


def _by_name(outputs: Any) -> dict[str, Any] | None:
    """Values by name; None where they have no names."""
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, list) and outputs and all(isinstance(row, Mapping) for row in outputs):
        names = dict.fromkeys(name for row in outputs for name in row)
        return {name: [row.get(name) for row in outputs] for name in names}
    return None


def _array(values: Any, dtype: str | None) -> NDArray[Any]:
    """An array of the given dtype, or of the one that holds the values exactly; None becomes NaN among floats.

    Ragged lists are an array of lists, one for each item.
    """
    flat = _flat(values)
    kinds = {type(each) for each in flat}
    is_regular = kinds <= {float, NONE} or len(kinds) == 1
    if kinds == {int, float}:
        is_regular = all(abs(each) <= EXACT_IN_FLOAT for each in flat if type(each) is int)
    wanted = dtype or (np.float64 if NONE in kinds else None)
    with suppress(ValueError, TypeError):  # ragged
        if dtype or (is_regular and kinds & {bool, int, float, str}):
            return np.array(values, wanted)
    array = np.array(values, object)
    if any(isinstance(each, list) for each in array.flat):
        array = np.empty(len(values), object)
        array[:] = values
    return array


def _flat(values: Any) -> list[Any]:
    return [each for item in values for each in _flat(item)] if isinstance(values, list) else [values]
