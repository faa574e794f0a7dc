"""Reads tables of pandas, polars and pyarrow, and objects that export an Arrow stream; imports none of the packages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import ConfigurationError

Frame = tuple[list[str], list[list[Any]]]  # the names of the columns, and their values


def read_frame(value: Any) -> Frame | None:
    """The columns of a table; None if the value is none. The index of a pandas table is not a column.

    Raises:
        ConfigurationError: Only pyarrow can read it, and pyarrow is not installed.
    """
    if hasattr(value, "iloc") and hasattr(value, "columns"):  # pandas
        places = range(len(value.columns))
        return [str(name) for name in value.columns], [column_values(value.iloc[:, each]) for each in places]
    if hasattr(value, "get_columns"):  # polars
        series = value.get_columns()
        return [each.name for each in series], [column_values(each) for each in series]
    if hasattr(value, "column_names") and hasattr(value, "to_pydict"):  # pyarrow
        places = range(len(value.column_names))
        return list(value.column_names), [column_values(value.column(each)) for each in places]
    if hasattr(value, "__arrow_c_stream__") and not hasattr(value, "__array__"):
        return read_frame(_arrow_table(value))
    return None


def column_values(column: Any) -> list[Any]:
    """The values of a column as Python objects, None or NaN for a missing one; times as ISO text, with nanoseconds."""
    if _holds_plain_times(column) or isinstance(getattr(column, "dtype", None), np.dtype):
        return array_values(np.asarray(column))
    # Columns of polars, pyarrow and pandas' own types, whose arrays would have floats in place of integers with gaps.
    values: list[Any] = column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()
    return values


def array_values(array: NDArray[Any]) -> list[Any]:
    """An array as nested lists: times as ISO text, None for a missing one."""
    if array.dtype.kind == "M":
        texts = np.datetime_as_string(array).astype(object)
        texts[np.isnat(array)] = None
        array = texts
    listed: list[Any] = array.tolist()
    return listed


def _holds_plain_times(column: Any) -> bool:
    """Whether it holds times without a zone. Python's own times would lose their nanoseconds."""
    kind = str(getattr(column, "dtype", getattr(column, "type", ""))).lower()
    is_time = kind.startswith(("datetime", "timestamp", "date32", "date64"))
    has_zone = "tz=" in kind or "time_zone='" in kind or (kind.startswith("datetime64[") and "," in kind)
    return is_time and not has_zone


def _arrow_table(value: Any) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise ConfigurationError(
            f"reading a {type(value).__name__} needs pyarrow: pip install pyarrow; or give a dict of columns"
        ) from None
    return pa.table(value)
