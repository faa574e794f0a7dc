"""Reads the rows of an input file in chunks: CSV, NDJSON, Parquet, NumPy files, images in a folder or a zip archive.

Blank lines are no rows. A line that is no JSON is an `Unreadable` in the place of its row.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from modelyard.batch.array_files import ArrayFile, npz_body
from modelyard.errors import ConfigurationError, InputError
from modelyard.inputs import Body, Samples

Rows: TypeAlias = Any  # a list, an array, arrays by name or a record batch: `count` and `cut` take each
Encode: TypeAlias = Callable[[Rows], Samples]
CHUNK_BYTES = 2 * 2**20  # below the default of MODELYARD_MAX_BODY_BYTES
READ_CHUNKS = 16  # of a Parquet file at once: each read takes a while for each column
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
ARROW_STREAM = "application/vnd.apache.arrow.stream"


class Unreadable(NamedTuple):
    """A row that cannot be sent."""

    reason: str


class Source(Protocol):
    """The rows of a file.

    Attributes:
        n_rows: Number of rows; None where only reading all of them would tell.
        encodings: How rows may be sent: the first one that the version takes is used.
    """

    n_rows: int | None
    encodings: Sequence[Encode]

    def chunks(self, start: int, n_rows: int) -> Iterator[Rows]:
        """The rows from `start` on, at most `n_rows` at a time.

        Raises:
            InputError: The file is damaged.
        """

    def progress(self) -> float:
        """Fraction of the file that was read."""


def open_source(path: Path) -> Source:
    """The rows of a file or folder, by its suffix.

    Raises:
        InputError: It does not exist, or it is of an unknown kind.
        ConfigurationError: Reading it needs a package that is not installed.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a file, or a folder of images")
    if path.is_dir():
        return Images(path)
    kind = SOURCES.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"{path} is of an unknown kind; expected a folder of images or one of {', '.join(SOURCES)}"
        )
    return kind(path)


def count(rows: Rows) -> int:
    """Number of rows."""
    if isinstance(rows, dict):
        return len(next(iter(rows.values())))
    return len(rows)


def cut(rows: Rows, start: int, stop: int) -> Rows:
    """The rows from `start` to before `stop`."""
    if isinstance(rows, dict):
        return {name: values[start:stop] for name, values in rows.items()}
    if hasattr(rows, "num_rows"):  # a record batch, whose own slices take no negative steps
        return rows.slice(start, stop - start)
    return rows[start:stop]


class CsvFile:
    """A table of text with a header row.

    Cells travel as text, and the columns' types decide what they mean. Where the version takes no CSV, they are numbers
    of a tensor.
    """

    def __init__(self, path: Path) -> None:
        self.n_rows: int | None = None
        self.encodings: Sequence[Encode] = (self._as_csv, _as_lists)
        self._path = path
        self._size = path.stat().st_size
        self._read_bytes = 0
        self._header: list[str] = []

    def chunks(self, start: int, n_rows: int) -> Iterator[Rows]:
        """See `Source`."""
        with self._path.open("rb") as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            rows = (row for row in csv.reader(text, strict=True) if row)
            try:
                self._header = next(rows, [])
                for chunk in _grouped(rows, start, n_rows, lambda row: sum(map(len, row)) + len(row)):
                    self._read_bytes = file.tell()
                    yield chunk
            except (csv.Error, UnicodeDecodeError) as error:
                raise InputError(f"{self._path} cannot be read as CSV in UTF-8: {error}") from None
            self._read_bytes = self._size

    def progress(self) -> float:
        """See `Source`."""
        return self._read_bytes / self._size if self._size else 1.0

    def _as_csv(self, rows: Rows) -> Samples:
        text = io.StringIO()
        csv.writer(text).writerows([self._header, *rows])
        return Body(text.getvalue().encode(), "text/csv")


class NdjsonFile:
    """One JSON value a line: an object, a list or a single value."""

    def __init__(self, path: Path) -> None:
        self.n_rows: int | None = None
        self.encodings: Sequence[Encode] = (list,)
        self._path = path
        self._size = path.stat().st_size
        self._read_bytes = 0

    def chunks(self, start: int, n_rows: int) -> Iterator[Rows]:
        """See `Source`."""
        with self._path.open("rb") as file:
            lines = (line for line in file if not line.isspace())
            for chunk in _grouped(lines, start, n_rows, len):
                self._read_bytes += sum(map(len, chunk))
                yield [_parsed(line) for line in chunk]

    def progress(self) -> float:
        """See `Source`."""
        return min(self._read_bytes / self._size, 1.0) if self._size else 1.0


class ParquetFile:
    """A Parquet file, sent as Arrow batches."""

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise ConfigurationError(
                "Parquet needs pyarrow: pip install 'modelyard-client[tables]'"
            ) from None
        try:
            self._file = parquet.ParquetFile(path, pre_buffer=False)  # else it keeps the whole file
        except (ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet: {error}") from None
        self.n_rows: int | None = self._file.metadata.num_rows
        self.encodings: Sequence[Encode] = (_as_arrow_stream,)
        self._n_read = 0

    def chunks(self, start: int, n_rows: int) -> Iterator[Rows]:
        """See `Source`."""
        metadata, first, skipped = self._file.metadata, 0, 0
        while first < metadata.num_row_groups and skipped + metadata.row_group(first).num_rows <= start:
            skipped += metadata.row_group(first).num_rows
            first += 1
        size = sum(metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
        fitting = max(1, CHUNK_BYTES * max(1, metadata.num_rows) // max(1, size))
        groups = range(first, metadata.num_row_groups)
        self._n_read = skipped
        chunk_rows = min(n_rows, fitting)
        read_rows = min(READ_CHUNKS * chunk_rows, fitting)
        for batch in self._file.iter_batches(read_rows, row_groups=groups, use_threads=False):
            n_before = self._n_read
            for place in range(max(0, start - n_before), batch.num_rows, chunk_rows):
                chunk = batch.slice(place, chunk_rows)
                self._n_read = n_before + place + chunk.num_rows
                yield chunk
            self._n_read = n_before + batch.num_rows

    def progress(self) -> float:
        """See `Source`."""
        return self._n_read / self.n_rows if self.n_rows else 1.0


class NumpyFile:
    """A NumPy file, or an archive of arrays with the same number of rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with ArrayFile(path) as arrays:
            self.n_rows: int | None = arrays.n_rows
        self.encodings: Sequence[Encode] = (lambda rows: npz_body(rows) if isinstance(rows, dict) else rows,)
        self._n_read = 0

    def chunks(self, start: int, n_rows: int) -> Iterator[Rows]:
        """See `Source`."""
        with ArrayFile(self._path) as arrays:
            arrays.skip(start)
            self._n_read = start
            while self._n_read < arrays.n_rows:
                rows = arrays.read(min(n_rows, max(1, CHUNK_BYTES // arrays.row_bytes)))
                self._n_read += count(rows)
                yield rows

    def progress(self) -> float:
        """See `Source`."""
        return self._n_read / self.n_rows if self.n_rows else 1.0


class Images:
    """The PNG and JPEG files of a folder or a zip archive, in the order of their names, one image a row.

    Attributes:
        names: Name of each row.
    """

    def __init__(self, path: Path) -> None:
        found = {each.name: each for each in path.iterdir()} if path.is_dir() else _members(path)
        self.names = sorted(name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        if not self.names:
            raise InputError(f"{path} holds no image; expected files *.png or *.jpg")
        self.n_rows: int | None = len(self.names)
        self.encodings: Sequence[Encode] = (_as_images,)
        self._files = found
        self._n_read = 0

    def chunks(self, start: int, n_rows: int) -> Iterator[Rows]:
        """See `Source`."""
        self._n_read = start
        images = (_image(self._files[name]) for name in self.names[start:])
        for chunk in _grouped(images, 0, n_rows, lambda image: len(image) * 4 // 3):
            self._n_read += len(chunk)
            yield chunk

    def progress(self) -> float:
        """See `Source`."""
        return self._n_read / len(self.names)


SOURCES: dict[str, Callable[[Path], Source]] = {
    ".csv": CsvFile,
    ".ndjson": NdjsonFile,
    ".jsonl": NdjsonFile,
    ".parquet": ParquetFile,
    ".npy": NumpyFile,
    ".npz": NumpyFile,
    ".zip": Images,
}


def _grouped(rows: Iterable[Any], start: int, n_rows: int, size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Lists of at most `n_rows` rows and about `CHUNK_BYTES`, without the first `start` rows."""
    chunk: list[Any] = []
    n_bytes = 0
    for place, row in enumerate(rows):
        if place < start:
            continue
        row_bytes = size(row)
        if chunk and (len(chunk) == n_rows or n_bytes + row_bytes > CHUNK_BYTES):
            yield chunk
            chunk, n_bytes = [], 0
        chunk.append(row)
        n_bytes += row_bytes
    if chunk:
        yield chunk


def _parsed(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:  # as Python writes it, with NaN
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unreadable(f"the line is not JSON: {error}")


def _as_lists(rows: Rows) -> list[list[Any]]:
    """Cells as JSON values, which a tensor takes in the order of the columns."""
    return [[_value(cell) for cell in row] for row in rows]


def _value(cell: str) -> Any:
    """A cell as a JSON value: a number, text, or None for an empty one."""
    if not cell:
        return None
    try:
        return int(cell) if cell.lstrip("+-").isdecimal() else float(cell)
    except ValueError:
        return cell


def _as_arrow_stream(rows: Any) -> Samples:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_batch(rows)
    return Body(sink.getvalue().to_pybytes(), ARROW_STREAM)


def _members(path: Path) -> dict[str, zipfile.Path]:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path} cannot be read as a zip archive: {error}") from None
    return {name: zipfile.Path(archive, name) for name in archive.namelist()}


def _image(file: Path | zipfile.Path) -> bytes | Unreadable:
    try:
        return file.read_bytes()
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: it is encrypted
        return Unreadable(f"the image cannot be read: {error}")


def _as_images(images: Sequence[bytes]) -> Samples:
    return [{"b64": base64.b64encode(each).decode()} for each in images]
