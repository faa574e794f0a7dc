"""Writes the output and the file of rows that were set aside, once all rows are finished: CSV, NDJSON or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import msgspec

from modelyard.batch.part_file import Finished, Kinds, PartFile
from modelyard.errors import ConfigurationError

ROW_GROUP_BYTES = 32 * 2**20  # of a Parquet file, uncompressed
Columns = list[Sequence[Any]]
Write = Callable[[Path, Iterator[Columns], Kinds], None]


def write_results(part: PartFile, output: Path, names: Sequence[str] | None) -> Path | None:
    """Write one row for each finished row, in order; a row that was set aside has no outputs.

    Args:
        output: File to write; it appears when it is complete.
        names: Name of each row for a column `file`, if rows have names.

    Returns:
        The file with the rows that were set aside; None if there is none.
    """
    columns: Kinds = {"row": {int}, **({} if names is None else {"file": {str}}), **part.kinds}
    columns |= {"model_version": {int}, "latency_ms": {float}}
    unfinished = output.with_name(output.name + ".tmp")
    groups = (_columns(each, part.kinds, names) for each in part.finished())
    try:
        WRITERS[output.suffix.lower()](unfinished, groups, columns)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    bad = bad_path_of(output)
    bad.unlink(missing_ok=True)
    if part.n_bad:
        _write_bad(bad, (each for each in part.finished() if each.code), names)
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


def _columns(group: Finished, outputs: Iterable[str], names: Sequence[str] | None) -> Columns:
    end, nothing = group.start + group.rows, [None] * group.rows
    return [
        range(group.start, end),
        *([] if names is None else [names[group.start : end]]),
        *[group.outputs.get(name, nothing) for name in outputs],
        [group.version] * group.rows,
        [group.latency_ms] * group.rows,
    ]


def _write_bad(path: Path, groups: Iterable[Finished], names: Sequence[str] | None) -> None:
    with path.open("wb") as file:
        for group in groups:
            for row in range(group.start, group.start + group.rows):
                named = {"file": names[row]} if names is not None else {}
                told = {"row": row, **named, "code": group.code, "reason": group.reason}
                file.write(msgspec.json.encode(told) + b"\n")


def _write_csv(path: Path, groups: Iterator[Columns], kinds: Kinds) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(kinds)
        is_plain = not set().union(*kinds.values()) & {bool, list, dict}
        for columns in groups:
            rows = zip(*columns, strict=True)
            writer.writerows(rows if is_plain else (map(_cell, row) for row in rows))


def _cell(value: Any) -> Any:
    if isinstance(value, bool | list | dict):
        return msgspec.json.encode(value).decode()
    return value


def _write_ndjson(path: Path, groups: Iterator[Columns], kinds: Kinds) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for columns in groups:
            rows = map(dict, map(zip, repeat(tuple(kinds)), zip(*columns, strict=True)))
            file.write(encoder.encode_lines(rows))


def _write_parquet(path: Path, groups: Iterator[Columns], kinds: Kinds) -> None:
    import pyarrow
    from pyarrow import parquet

    types = [_arrow_type(each) for each in kinds.values()]
    schema = pyarrow.schema(list(zip(kinds, [kind for kind, _ in types], strict=True)))
    held: list[Any] = []
    held_bytes = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for columns in groups:
            arrays = [
                pyarrow.array(convert(values), kind)
                for values, (kind, convert) in zip(columns, types, strict=True)
            ]
            held.append(pyarrow.record_batch(arrays, schema=schema))
            held_bytes += held[-1].nbytes
            if held_bytes > ROW_GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_batches(held))
                held, held_bytes = [], 0
        writer.write_table(pyarrow.Table.from_batches(held, schema))


def _arrow_type(kinds: set[type]) -> tuple[Any, Callable[[Sequence[Any]], Sequence[Any]]]:
    """The type of a column, and what makes its values fit; values of several types are JSON texts."""
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
    return pyarrow.string(), _as_json


def _same(values: Sequence[Any]) -> Sequence[Any]:
    return values


def _as_json(values: Sequence[Any]) -> Sequence[Any]:
    return [None if each is None else json.dumps(each) for each in values]


WRITERS: dict[str, Write] = {
    ".csv": _write_csv,
    ".ndjson": _write_ndjson,
    ".jsonl": _write_ndjson,
    ".parquet": _write_parquet,
}
