"""Converts a document to the columns of a contract: finds each column in any row format, and checks its values."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from app.contract import SHOWN, Column, ColumnsContract
from app.contract.column_values import (
    HAVE_MISSING,
    RANGES,
    Misfit,
    Values,
    convert,
    is_as_it_travels,
    read_number,
)
from app.contract.documents import CSV, TABLE, Document, Rules, malformed
from app.server_errors import InputEmptyError, InputError, InputShapeError, InputTypeError

Named = Mapping[str, Values]
ABSENT = object()  # marks a missing column in a row


def read_columns(
    document: Document, contract: ColumnsContract, rules: Rules
) -> tuple[list[Values | None], int]:
    """The values of each column of the contract, None for an absent optional one; and the number of rows.

    Raises:
        InputShapeError: A column is missing, or rows differ in length.
        InputTypeError: A value does not have its column's type; the error names row and column.
        InputEmptyError: There is no row.
    """
    given, n_rows = _columns(document, contract, rules)
    if n_rows == 0 and rules == "strict":
        raise InputEmptyError("the body holds no row; expected at least one")
    if isinstance(given, dict):
        found = [given.get(str(each.name)) for each in contract.columns]
    else:
        found = [*given, *[None] * (len(contract.columns) - len(given))]
    as_text = rules == "mlflow" and document.key in ("inputs", "instances")
    columns = [
        _checked(place, column, values, contract, rules, as_text)
        for place, (column, values) in enumerate(zip(contract.columns, found, strict=False))
    ]
    return columns, n_rows


def _checked(
    place: int, column: Column, values: Values | None, contract: ColumnsContract, rules: Rules, as_text: bool
) -> Values | None:
    if values is None:
        if column.required:
            name = _named(place, column)
            raise InputShapeError(f"the column {name} is missing; expected {contract.describe()}")
        return None
    if isinstance(values, bytes) or is_as_it_travels(values, column.type.kind):
        return values
    name = _named(place, column)
    allows_missing = not column.required or (contract.allows_missing and column.type.kind in HAVE_MISSING)
    if ABSENT in values:
        if column.required and rules == "strict":
            raise InputShapeError(
                f"row {values.index(ABSENT)} lacks the column {name}; expected {column.describe()}"
            )
        values = [None if each is ABSENT else each for each in values]
    if as_text:
        values = _as_text(values, column.type.kind)
    try:
        converted = convert(values, column.type, allows_missing=allows_missing, rules=rules)
    except Misfit as misfit:
        raise InputTypeError(misfit.at(f"row {misfit.row}, column {name}")) from None
    if not column.required and None in converted:
        return _optional(converted, column, name)
    return converted


def _named(place: int, column: Column) -> str:
    return f"number {place + 1}" if column.name is None else repr(column.name)


def _optional(values: Values, column: Column, name: str) -> Values | None:
    """An optional column with missing values. MLflow passes no missing integers: the column is complete or absent."""
    if column.type.kind not in ("integer", "long", "binary"):
        return values
    if any(value is not None for value in values) and column.type.kind in ("integer", "long"):
        raise InputTypeError(
            f"row {values.index(None)}, column {name}: got null beside integers; a {column.type.kind} column may be "
            "left out, but not in single rows: declare it as double where it may have gaps"
        )
    return values if any(value is not None for value in values) else None


def _as_text(values: Values, kind: str) -> Values:
    """MLflow's conversion of text and bytes under `inputs` and `instances`, except that null stays null."""
    if kind == "string":
        return [str(each) if type(each) in (int, float, bool) else each for each in values]
    if kind == "binary":
        return [each.encode() if type(each) is str and each.isascii() else each for each in values]
    return values


def _columns(
    document: Document, contract: ColumnsContract, rules: Rules
) -> tuple[Named | Sequence[Values], int]:
    """Columns by name, or in order if the contract has no names; and the number of rows."""
    value = document.value
    if document.key == TABLE:
        columns, n_rows = value
        return (columns if contract.has_names else _enough(columns, contract)), n_rows
    if document.key == "dataframe_split":
        return _split(value, contract, rules)
    if document.key == "dataframe_records":
        return _records(value, contract, "dataframe_records")
    if document.key == CSV:
        return _csv(value, contract, rules)
    if isinstance(value, dict):
        return _by_name(value, contract, document.key, rules)
    if isinstance(value, list) and value and all(type(each) is dict for each in value):
        return _records(value, contract, document.key)
    if not contract.has_names:
        return _positional(value if isinstance(value, list) else [value], contract, rules)
    if (
        len(contract.columns) == 1
        and isinstance(value, list)
        and not any(type(each) is dict for each in value)
    ):
        return {str(contract.columns[0].name): value}, len(value)
    raise _wrong_form(document.key, contract)


def _wrong_form(key: str, contract: ColumnsContract) -> InputError:
    return InputShapeError(
        f"{key} must hold a list of objects, one a row, or an object of columns; expected {contract.describe()}"
    )


def _split(value: Any, contract: ColumnsContract, rules: Rules) -> tuple[Named | Sequence[Values], int]:
    names, rows = value.get("columns"), value["data"]
    if rows and type(rows[0]) is not list:
        rows = [[each] for each in rows]
    if names is None:
        if contract.has_names:
            raise InputShapeError(f"dataframe_split lacks columns; expected {contract.describe()}")
        return _positional(rows, contract, rules)
    if len({repr(each) for each in names}) < len(names):
        raise InputShapeError("dataframe_split names a column twice; expected each of them once")
    columns = _transposed(rows, len(names), rules)
    if not contract.has_names:
        return _enough(columns, contract), len(rows)
    return dict(zip(map(str, names), columns, strict=True)), len(rows)


def _positional(rows: Any, contract: ColumnsContract, rules: Rules) -> tuple[Sequence[Values], int]:
    if rows and type(rows[0]) is not list:
        rows = [[each] for each in rows]
    n_columns = len(rows[0]) if rows else len(contract.columns)
    return _enough(_transposed(rows, n_columns, rules), contract), len(rows)


def _enough(columns: list[Values], contract: ColumnsContract) -> list[Values]:
    if len(columns) < len(contract.columns):
        raise InputShapeError(
            f"{len(columns)} columns; expected {len(contract.columns)}, in this order: {contract.describe()}"
        )
    return columns


def _transposed(rows: list[Any], n_columns: int, rules: Rules) -> list[Values]:
    if not rows:
        return [[] for _ in range(n_columns)]
    for row, each in enumerate(rows):
        if type(each) is not list or len(each) > n_columns or (len(each) < n_columns and rules == "strict"):
            got = f"{len(each)} values" if type(each) is list else "no list"
            raise malformed(f"row {row} has {got}; expected {n_columns}, one a column", rules)
    lengths = set(map(len, rows))
    if max(lengths) < n_columns:
        raise malformed(
            f"no row has more than {max(lengths)} values; expected {n_columns}, one a column", rules
        )
    if len(lengths) > 1:
        rows = [[*each, *[None] * (n_columns - len(each))] for each in rows]
    return list(map(list, zip(*rows, strict=True)))


def _records(value: Any, contract: ColumnsContract, key: str) -> tuple[Named | Sequence[Values], int]:
    if not all(type(each) is dict for each in value):
        raise InputShapeError(f"{key} must hold a list of objects, one a row; expected {contract.describe()}")
    names = (
        [str(each.name) for each in contract.columns]
        if contract.has_names
        else list(value[0] if value else ())
    )
    columns = {name: [row.get(name, ABSENT) for row in value] for name in names}
    found = {name: values for name, values in columns.items() if any(each is not ABSENT for each in values)}
    return (found if contract.has_names else _enough(list(columns.values()), contract)), len(value)


def _by_name(value: dict[str, Any], contract: ColumnsContract, key: str, rules: Rules) -> tuple[Named, int]:
    if not contract.has_names:
        raise _wrong_form(key, contract)
    known = {str(each.name) for each in contract.columns}
    given = {name: each for name, each in value.items() if name in known}
    if contract.has_nested or not any(type(each) is list for each in given.values()):
        return {name: [each] for name, each in given.items()}, 1
    lengths = {name: len(each) for name, each in given.items() if type(each) is list}
    if rules == "mlflow" and len(set(lengths.values())) == 1:  # it repeats a value beside lists in each row
        n_rows = next(iter(lengths.values()))
        return {n: each if type(each) is list else [each] * n_rows for n, each in given.items()}, n_rows
    if len(lengths) < len(given) or len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name}: {lengths.get(name, 'no list')}" for name in given)
        raise InputShapeError(
            f"the columns differ in length ({shown[: SHOWN * 4]}); expected one value a row"
        )
    return given, next(iter(lengths.values()))


def _csv(text: str, contract: ColumnsContract, rules: Rules) -> tuple[Named | Sequence[Values], int]:
    """The columns of a CSV table. The column type determines the meaning of a cell: see `_cell`."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # of the process; the body's size is limited
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise malformed(
            f"the body is not CSV ({error}); expected a header row and one row each", rules
        ) from None
    if not lines:
        raise malformed("the body holds no line; expected CSV with a header row and one row each", rules)
    header, *rows = lines
    columns = dict(zip(header, _transposed(rows, len(header), rules), strict=True))
    if len(columns) < len(header):
        raise InputShapeError("the header names a column twice; expected each of them once")
    kinds = [each.type.kind for each in contract.columns]
    for column in contract.columns:
        is_needed = column.required or str(column.name) in columns
        if is_needed and column.type.kind not in SPELLED[rules]:
            raise InputShapeError(
                f"CSV cannot represent a column of type {column.type.describe()}; send the rows as JSON"
            )
    if contract.has_names:
        lacking = [each.name for each in contract.columns if each.required and each.name not in columns]
        if lacking:
            raise InputShapeError(
                f"the first row names the columns {repr(header)[: SHOWN * 4]}, and {lacking[0]!r} is missing; expected "
                f"{contract.describe()}, with commas between them"
            )
        of = {str(each.name): each.type.kind for each in contract.columns}
        return {
            name: [_cell(each, of[name], rules) for each in values]
            for name, values in columns.items()
            if name in of
        }, len(rows)
    ordered = _enough(list(columns.values()), contract)
    return [
        [_cell(each, kind, rules) for each in values] for kind, values in zip(kinds, ordered, strict=False)
    ], len(rows)


# Column types that a cell can spell; the strict rules take times and base64 as JSON texts are taken.
SPELLED: dict[Rules, frozenset[str]] = {
    "mlflow": frozenset({"boolean", "integer", "long", "float", "double", "string"}),
    "strict": frozenset({"boolean", "integer", "long", "float", "double", "string", "datetime", "binary"}),
}
# Texts that pandas treats as a missing value in CSV.
GAPS = frozenset(
    {"", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
    | {"N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def _cell(text: str | None, kind: str, rules: Rules) -> Any:
    if text is None or not text or (text in GAPS and (kind != "string" or rules == "mlflow")):
        return None
    if kind == "boolean":
        return BOOLEANS.get(text, text)
    if kind in ("string", "datetime", "binary"):
        return text
    try:
        number = read_number(text)
        return int(text) if kind in RANGES and text.lstrip("+-").isdigit() else number
    except ValueError:
        return text
