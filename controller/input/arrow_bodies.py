"""Reads Arrow IPC and Parquet bodies, and converts their columns for a contract. Runs in a reader process only.

Only the number of rows is bounded here; the reader process bounds memory and CPU time. Nothing of a column is converted
before a contract is known. Values are then treated like JSON values under the strict rules.
"""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.contract import (
    FREE,
    NESTED,
    SHOWN,
    AnyContract,
    Column,
    ColumnsContract,
    Contract,
    TensorContract,
    TensorField,
)
from app.contract.documents import TABLE, Document
from app.contract.tensors import MAX_DIMENSIONS, Shaped
from app.server_errors import (
    BodyNotArrayError,
    InputShapeError,
    InputTypeError,
    ModelyardError,
    TooLargeError,
)
from controller.input.arrow_numbers import packed
from controller.input.bodies import ARROW_FILE, ARROW_STREAM

Values = list[Any]
NAMES = {ARROW_STREAM: "an Arrow IPC stream", ARROW_FILE: "an Arrow IPC file"}
PARQUET = "a Parquet file"
GATHERED = {
    pa.string_view(): pa.large_string(),
    pa.binary_view(): pa.large_binary(),
}  # Arrow gathers no views
INDEX = re.compile(r"__index_level_\d+__")  # a DataFrame's index, which pandas writes as a column


class Table:
    """Columns that have not been compared with a contract yet."""

    def __init__(self, table: pa.Table) -> None:
        names = [name for name in table.column_names if not INDEX.fullmatch(name)]
        if len(set(names)) < len(names):
            raise InputShapeError("the table names a column twice; expected each of them once")
        self._n_rows: int = table.num_rows
        self._columns = {name: table.column(name) for name in names}

    def document(self, contract: Contract) -> Document:
        """The columns in the form that a contract takes.

        Raises:
            InputShapeError: A tensor's columns are missing, ragged or too few.
            InputTypeError: A column has a type that no contract takes.
        """
        if isinstance(contract, ColumnsContract):
            return Document(TABLE, (self._selected(contract), self._n_rows))
        if isinstance(contract, AnyContract):
            columns = [_as_json(_values(each, name)) for name, each in self._columns.items()]
            rows = [list(row) for row in zip(*columns, strict=True)]
            return Document("dataframe_split", {"columns": list(self._columns), "data": rows})
        fields = (contract.as_tensors if isinstance(contract, TensorContract) else contract).tensors
        [first, *others] = fields
        if not others and first.name not in self._columns:
            value = _fitted(self._only_tensor(first), first, contract)
            return Document("data", value if first.name is None else {first.name: value})
        for field in fields:
            if field.name not in self._columns:
                raise InputShapeError(f"the column {field.name!r} is missing; expected {field.describe()}")
        named = {field.name: self._tensor(str(field.name), field) for field in fields}
        return Document(
            "inputs",
            {name: _fitted(named[name], field, contract) for name, field in zip(named, fields, strict=True)},
        )

    def _selected(self, contract: ColumnsContract) -> dict[str, Values | bytes] | list[Values]:
        if not contract.has_names:
            columns = [*self._columns.items()][: len(contract.columns)]
            return [
                _column_values(each, name, column)
                for (name, each), column in zip(columns, contract.columns, strict=False)
            ]
        found: dict[str, Values | bytes] = {}
        for column in contract.columns:
            name = str(column.name)
            if name in self._columns:
                array = _storage(self._columns[name])
                found[name] = packed(array, column, contract.allows_missing) or _column_values(
                    array, name, column
                )
        return found

    def _only_tensor(self, field: TensorField) -> NDArray[Any] | Shaped:
        """One tensor from a single column of lists, or with one value a row from each column."""
        names = list(self._columns)
        if not names:
            raise InputShapeError(f"the table has no column; expected {field.describe()}")
        if len(names) == 1:
            return self._tensor(names[0], field)
        types = {str(each.type) for each in self._columns.values()}
        are_numbers = all(_is_number(_storage(each).type) for each in self._columns.values())
        if len(types) > 1 and not are_numbers:
            shown = ", ".join(f"{name}: {each.type}" for name, each in [*self._columns.items()][:8])
            raise InputTypeError(
                f"the columns differ in type ({shown[: SHOWN * 4]}); expected one type for {field.describe()}"
            )
        columns = [self._tensor(name, field) for name in names]
        if any(len(each.shape) > 1 for each in columns):
            raise InputShapeError(
                f"{len(columns)} columns of lists; expected one of them for {field.describe()}"
            )
        shape = (self._n_rows, len(columns))
        arrays = [each for each in columns if isinstance(each, np.ndarray)]
        if len(arrays) == len(columns) and len(types) == 1:
            return np.stack(arrays, axis=1)
        lists = [each.flat if isinstance(each, Shaped) else each.tolist() for each in columns]
        return Shaped(shape, [value for row in zip(*lists, strict=True) for value in row])

    def _tensor(self, name: str, field: TensorField) -> NDArray[Any] | Shaped:
        """The values of one column; an array where none is missing."""
        of_type = self._columns[name].type
        array, shape = _storage(self._columns[name]), [self._n_rows]
        while _is_list(array.type):
            if len(shape) == MAX_DIMENSIONS:
                raise InputShapeError(f"column {name!r} has more than {MAX_DIMENSIONS} dimensions")
            sizes = pc.list_value_length(array)
            if array.null_count:
                row = int(np.argmax(sizes.is_null().to_numpy(zero_copy_only=False)))
                raise InputShapeError(
                    f"row {_row(row, shape)}, column {name!r}: got null; expected {field.describe()}"
                )
            found = sizes.to_numpy(zero_copy_only=False)
            differing = np.flatnonzero(found != found[:1])
            if differing.size:
                raise InputShapeError(
                    f"row {_row(int(differing[0]), shape)}, column {name!r}: a list of {found[differing[0]]} values, "
                    f"and others have {found[0]}; expected {field.describe()}"
                )
            shape.append(int(found[0]) if found.size else 0)
            array = _storage(array.flatten())
        if isinstance(of_type, pa.FixedShapeTensorType):
            if of_type.permutation and sorted(of_type.permutation) != [*of_type.permutation]:
                raise InputTypeError(f"column {name!r} has permuted dimensions; expected row-major tensors")
            shape = [self._n_rows, *of_type.shape]
        kind = array.type
        if not _is_number(kind) and not pa.types.is_boolean(kind) and not _is_text(kind):
            raise InputTypeError(
                f"column {name!r} has the Arrow type {str(kind)[:SHOWN]}; expected {field.describe()}"
            )
        if array.null_count or _is_text(kind):
            return Shaped(tuple(shape), array.to_pylist())
        numbers: NDArray[Any] = array.to_numpy(zero_copy_only=False)
        return numbers.reshape(shape)


def read_table(kind: bytes, body: bytes, max_rows: int, max_bytes: int) -> Table:
    """Read a body.

    Args:
        kind: Its content type without parameters.
        max_bytes: Of the uncompressed columns.

    Raises:
        BodyNotArrayError: It does not match its content type, or it is damaged.
        TooLargeError: It has more rows or uncompressed bytes.
        InputShapeError: Two columns have the same name.
    """
    try:
        is_ipc = kind in NAMES
        table = _read_ipc(kind, body, max_rows) if is_ipc else _read_parquet(body, max_rows, max_bytes)
        table.validate(full=True)  # offsets in a damaged body may point outside of its buffers
    except (ModelyardError, MemoryError):
        raise
    except Exception as error:  # a damaged body may raise any error
        reason = str(error).split("\n")[0][: 2 * SHOWN]
        raise BodyNotArrayError(f"the body is not {NAMES.get(kind, PARQUET)} ({reason})") from None
    _check_bytes(table.nbytes, max_bytes)
    return Table(table)


def _read_ipc(kind: bytes, body: bytes, max_rows: int) -> pa.Table:
    options = pa.ipc.IpcReadOptions(use_threads=False)
    source = pa.BufferReader(body)
    if kind == ARROW_STREAM:
        stream = pa.ipc.open_stream(source, options=options)
        schema, given = stream.schema, iter(stream)
    else:
        file = pa.ipc.open_file(source, options=options)
        _check_rows(file.num_record_batches, max_rows)
        schema, given = file.schema, (file.get_batch(place) for place in range(file.num_record_batches))
    batches, n_rows = [], 0
    for batch in given:
        n_rows += batch.num_rows
        _check_rows(n_rows, max_rows)
        batch.validate(full=True)
        batches.append(batch)
    if kind == ARROW_STREAM and source.tell() < len(body):
        raise BodyNotArrayError(
            f"{len(body) - source.tell()} bytes follow the end of the Arrow IPC stream; expected one stream"
        )
    return pa.Table.from_batches(batches, schema)


def _read_parquet(body: bytes, max_rows: int, max_bytes: int) -> pa.Table:
    file = pq.ParquetFile(pa.BufferReader(body), pre_buffer=False)
    described = file.metadata
    _check_rows(described.num_rows, max_rows)
    n_bytes = sum(described.row_group(place).total_byte_size for place in range(described.num_row_groups))
    _check_bytes(n_bytes, max_bytes)
    table = file.read(use_threads=False)
    _check_rows(table.num_rows, max_rows)
    return table


def _check_rows(n_rows: int, max_rows: int) -> None:
    if n_rows > max_rows:
        raise TooLargeError(f"{n_rows} rows in one request; at most {max_rows} are accepted")


def _check_bytes(n_bytes: int, max_bytes: int) -> None:
    if n_bytes > max_bytes:
        raise TooLargeError(
            f"the uncompressed table has {n_bytes} bytes; at most {max_bytes} are accepted: send fewer rows"
        )


def _fitted(value: NDArray[Any] | Shaped, field: TensorField, contract: Contract) -> NDArray[Any] | Shaped:
    """The same values, with flat rows in the tensor's shape."""
    row_shape, shape = field.shape[1:], tuple(value.shape)
    if FREE in row_shape or len(shape) > 2 or prod(shape[1:]) != prod(row_shape):
        return value
    whole = (shape[0], *row_shape)
    return value.reshape(whole) if isinstance(value, np.ndarray) else Shaped(whole, value.flat)


def _row(place: int, shape: list[int]) -> int:
    """The row of a value within nested lists of this shape."""
    return place // max(prod(shape[1:]), 1)


def _storage(array: Any) -> Any:
    """An array in one piece, of a type that holds its values plainly."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if isinstance(array, pa.ExtensionArray):
        return _storage(array.storage)
    if pa.types.is_dictionary(array.type):
        words = array.dictionary
        words = words.cast(GATHERED.get(words.type, words.type))
        return _storage(pa.DictionaryArray.from_arrays(array.indices, words).dictionary_decode())
    return array


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _values(array: Any, name: str) -> Values:
    """The values as Python objects as JSON would hold them, times as `numpy.datetime64`; None for a missing one."""
    array = _storage(array)
    kind = array.type
    if _is_number(kind) or pa.types.is_boolean(kind):
        plain: Values = (
            array.to_pylist() if array.null_count else array.to_numpy(zero_copy_only=False).tolist()
        )
        return plain
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _times(array)
    if pa.types.is_decimal(kind):
        convert = float if kind.scale > 0 else int
        return [None if each is None else convert(each) for each in array.to_pylist()]
    if _is_list(kind):
        sizes, flat = pc.list_value_length(array).to_pylist(), _values(array.flatten(), name)
        return _cut(flat, sizes)
    if pa.types.is_map(kind):
        return _maps(array, name)
    if pa.types.is_struct(kind):
        names = [kind.field(place).name for place in range(kind.num_fields)]
        columns = [_values(each, name) for each in array.flatten()]
        is_null = array.is_null().to_pylist()
        rows = zip(*columns, strict=True) if columns else [()] * len(array)
        return [
            None if gone else dict(zip(names, row, strict=True))
            for gone, row in zip(is_null, rows, strict=True)
        ]
    if _is_text(kind) or _is_bytes(kind) or pa.types.is_null(kind):
        values: Values = array.to_pylist()
        return values
    raise InputTypeError(
        f"column {name!r} has the Arrow type {str(kind)[:SHOWN]}, which no model takes; expected another"
    )


def _column_values(array: Any, name: str, column: Column) -> Values:
    values = _values(array, name)
    return [_as_json(each) for each in values] if column.type.kind in NESTED else values


def _is_bytes(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _times(array: Any) -> Values:
    times = array.to_numpy(zero_copy_only=False)
    zone = "+00:00" if pa.types.is_timestamp(array.type) and array.type.tz else ""
    gaps = np.isnat(times)
    if zone:  # refused by every contract; the text shows why
        return [None if gap else f"{time}{zone}" for gap, time in zip(gaps, times, strict=True)]
    return [None if gap else time for gap, time in zip(gaps, times, strict=True)]


def _cut(flat: Values, sizes: list[int | None]) -> Values:
    """Lists of these sizes, one after the other; None for a missing one."""
    cut: Values = []
    place = 0
    for size in sizes:
        cut.append(None if size is None else flat[place : place + size])
        place += size or 0
    return cut


def _maps(array: Any, name: str) -> Values:
    offsets = array.offsets.to_pylist()
    keys, items = _values(array.keys, name), _values(array.items, name)
    rows = [dict(zip(keys[start:end], items[start:end], strict=True)) for start, end in pairwise(offsets)]
    for place, (row, (start, end)) in enumerate(zip(rows, pairwise(offsets), strict=True)):
        if len(row) < end - start:
            raise InputTypeError(
                f"row {place}, column {name!r}: a key occurs twice; expected each of them once"
            )
    return [None if gone else row for gone, row in zip(array.is_null().to_pylist(), rows, strict=True)]


def _as_json(value: Any) -> Any:
    """The value with times as text."""
    if isinstance(value, list):
        return [_as_json(each) for each in value]
    if isinstance(value, dict):
        return {str(name): _as_json(each) for name, each in value.items()}
    return str(value) if type(value) is np.datetime64 else value
