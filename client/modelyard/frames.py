"""Reads tables of pandas, polars and pyarrow, and objects with an Arrow stream; requires none of the packages."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import ConfigurationError

Frame = tuple[list[str], list[list[Any]]]  # the names of the columns, and their values


def as_frame(value: Any) -> Any | None:
    """A table of pandas, polars or pyarrow; None if the value is none.

    Raises:
        ConfigurationError: Only pyarrow can read it, and pyarrow is not installed.
    """
    is_pandas = hasattr(value, "iloc") and hasattr(value, "columns")
    is_pyarrow = hasattr(value, "column_names") and hasattr(value, "to_pydict")
    if is_pandas or is_pyarrow or hasattr(value, "get_columns"):
        return value
    is_stream = hasattr(value, "__arrow_c_stream__") and not hasattr(value, "__array__")
    return _arrow_table(value) if is_stream else None


def read_frame(value: Any) -> Frame:
    """The columns of a table of pandas, polars or pyarrow. The index of a pandas table is not a column."""
    if hasattr(value, "iloc"):  # pandas
        places = range(len(value.columns))
        return [str(name) for name in value.columns], [column_values(value.iloc[:, each]) for each in places]
    if hasattr(value, "get_columns"):  # polars
        series = value.get_columns()
        return [each.name for each in series], [column_values(each) for each in series]
    places = range(len(value.column_names))
    return list(value.column_names), [column_values(value.column(each)) for each in places]


def arrow_table(value: Any) -> Any | None:
    """A table as one of pyarrow; None unless pyarrow is installed and all columns hold numbers, booleans or text.

    Only such columns mean the same in every contract, whether they travel as Arrow or as JSON.
    """
    try:
        import pyarrow as pa
    except ImportError:
        return None
    try:
        is_pandas = hasattr(value, "iloc")
        table = pa.Table.from_pandas(value, preserve_index=False) if is_pandas else pa.table(value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):  # such as a column of mixed types
        return None
    names = [str(name) for name in (value.columns if is_pandas else table.column_names)]
    is_plain = all(_is_plain(each.type, pa) for each in table.columns)
    return pa.Table.from_arrays(table.columns, names) if is_plain else None


def arrow_stream(table: Any) -> bytes:
    """A table of pyarrow as an Arrow IPC stream."""
    import pyarrow as pa

    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    content: bytes = stream.getvalue().to_pybytes()
    return content


def has_infinity(table: Any) -> bool:
    """Whether a column of pyarrow's table holds an infinity."""
    import pyarrow as pa
    import pyarrow.compute as pc

    floats = [each for each in table.columns if pa.types.is_floating(each.type)]
    return any(pc.any(pc.is_inf(each)).as_py() for each in floats)


def _is_plain(kind: Any, pa: Any) -> bool:
    types = pa.types
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    is_number = types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    return bool(is_text or is_number or types.is_boolean(kind))


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
