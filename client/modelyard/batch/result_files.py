"""Writes the output and the file of rows that were set aside, once all rows are finished: CSV, NDJSON or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from modelyard.batch.part_file import Line
from modelyard.errors import ConfigurationError

ROWS_AT_A_TIME = 10_000
INT64 = range(-(2**63), 2**63)
Write = Callable[[Path, Iterator[dict[str, Any]], dict[str, set[type]]], None]


def write_results(
    read: Callable[[], Iterator[Line]], output: Path, names: Sequence[str] | None, n_bad: int
) -> Path | None:
    """Write one row for each line, in order; a row that was set aside has no outputs.

    Args:
        read: The lines, from the first one on at each call.
        output: File to write; it appears when it is complete.
        names: Name of each row for a column `file`, if rows have names.
        n_bad: Number of rows that were set aside.

    Returns:
        The file with the rows that were set aside; None if there is none.
    """
    outputs = _columns(read())
    file: dict[str, set[type]] = {} if names is None else {"file": {str}}
    columns: dict[str, set[type]] = {
        "row": {int},
        **file,
        **outputs,
        "model_version": {int},
        "latency_ms": {float},
    }
    rows = (_row(line, outputs, names) for line in read())
    unfinished = output.with_name(output.name + ".tmp")
    WRITERS[output.suffix.lower()](unfinished, rows, columns)
    bad = bad_path_of(output)
    bad.unlink(missing_ok=True)
    if n_bad:
        _write_bad(bad, (line for line in read() if line.code), names)
    unfinished.replace(output)
    return bad if bad.exists() else None


def bad_path_of(output: Path) -> Path:
    """The file for the rows of an output that were set aside."""
    return output.with_name(f"{output.stem}.bad.ndjson")


def check_format(output: Path) -> None:
    """Check that an output of this kind can be written.

    Raises:
        ConfigurationError: Its kind is unknown, or it needs pyarrow.
    """
    if output.suffix.lower() not in WRITERS:
        raise ConfigurationError(f"{output} is of an unknown kind; expected one of {', '.join(WRITERS)}")
    if output.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ConfigurationError(
                "Parquet needs pyarrow: pip install 'modelyard-client[tables]'"
            ) from None


def _columns(lines: Iterable[Line]) -> dict[str, set[type]]:
    """The columns of all outputs, and the types of their values."""
    found: dict[str, set[type]] = {}
    for line in lines:
        for name, value in (line.outputs or {}).items():
            kinds = found.setdefault(name, set())
            kinds.add(type(value) if not isinstance(value, int) or value in INT64 else object)
    return found


def _row(line: Line, columns: Iterable[str], names: Sequence[str] | None) -> dict[str, Any]:
    outputs = line.outputs or {}
    row: dict[str, Any] = {"row": line.row}
    if names is not None:
        row["file"] = names[line.row]
    row |= {name: outputs.get(name) for name in columns}
    return row | {"model_version": line.version, "latency_ms": line.latency_ms}


def _write_bad(path: Path, lines: Iterable[Line], names: Sequence[str] | None) -> None:
    with path.open("wb") as file:
        for line in lines:
            named = {"file": names[line.row]} if names is not None else {}
            told = {"row": line.row, **named, "code": line.code, "reason": line.reason}
            file.write(msgspec.json.encode(told) + b"\n")


def _write_csv(path: Path, rows: Iterator[dict[str, Any]], columns: dict[str, set[type]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        is_plain = not set().union(*columns.values()) & {bool, list, dict}
        writer.writerows(row.values() if is_plain else map(_cell, row.values()) for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, bool | list | dict):
        return msgspec.json.encode(value).decode()
    return value


def _write_ndjson(path: Path, rows: Iterator[dict[str, Any]], columns: dict[str, set[type]]) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            file.write(encoder.encode_lines(chunk))


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], columns: dict[str, set[type]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {name: _arrow_type(kinds) for name, kinds in columns.items()}
    schema = pyarrow.schema([(name, kind) for name, (kind, _) in types.items()])
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            arrays = [
                pyarrow.array([convert(row[name]) for row in chunk], kind)
                for name, (kind, convert) in types.items()
            ]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def _arrow_type(kinds: set[type]) -> tuple[Any, Callable[[Any], Any]]:
    """The type of a column, and what makes a value one of it; values of several types are JSON texts."""
    import pyarrow

    match sorted(kind.__name__ for kind in kinds - {type(None)}):
        case ["bool"]:
            return pyarrow.bool_(), _same
        case ["int"]:
            return pyarrow.int64(), _same
        case ["float"] | ["float", "int"]:
            return pyarrow.float64(), _same
        case ["str"] | []:
            return pyarrow.string(), _same
    return pyarrow.string(), lambda value: None if value is None else json.dumps(value)


def _same(value: Any) -> Any:
    return value


WRITERS: dict[str, Write] = {
    ".csv": _write_csv,
    ".ndjson": _write_ndjson,
    ".jsonl": _write_ndjson,
    ".parquet": _write_parquet,
}
