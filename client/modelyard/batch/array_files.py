"""Reads NumPy files and archives row by row, so that files larger than the memory can be sent."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from modelyard.errors import InputError
from modelyard.inputs import Body

NPZ = "application/x-npz"


class ArrayFile:
    """An open NumPy file, or an archive of arrays with the same number of rows.

    Attributes:
        n_rows: Rows of each array.
        row_bytes: Size of one row of all arrays.

    Raises:
        InputError: It is damaged, or it holds an array that cannot be read by rows.
    """

    def __init__(self, path: Path) -> None:
        self._closing = ExitStack()
        with ExitStack() as closing:
            self._arrays = _open_arrays(path, closing)
            self._closing = closing.pop_all()
        sizes = {name: each.n_rows for name, each in self._arrays.items()}
        if len(set(sizes.values())) != 1:
            shown = ", ".join(f"{name}: {size}" for name, size in sizes.items())
            raise InputError(
                f"the arrays of {path} differ in their number of rows ({shown or 'there is no array'})"
            )
        self.n_rows = next(iter(sizes.values()))
        self.row_bytes = max(1, sum(each.row_bytes for each in self._arrays.values()))
        self._left = self.n_rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def skip(self, n_rows: int) -> None:
        """Leave out the next rows."""
        for each in self._arrays.values():
            each.file.seek(n_rows * each.row_bytes, io.SEEK_CUR)
        self._left -= n_rows

    def read(self, n_rows: int) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """The next rows: an array, or one for each name where there are several.

        Raises:
            InputError: The file is shorter than it says.
        """
        n_rows = min(n_rows, self._left)
        self._left -= n_rows
        rows = {name: each.read(n_rows) for name, each in self._arrays.items()}
        return rows if len(rows) > 1 else next(iter(rows.values()))


def npz_body(arrays: Mapping[str, NDArray[Any]]) -> Body:
    """Arrays by name as a request body."""
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return Body(file.getvalue(), NPZ)


def _open_arrays(path: Path, closing: ExitStack) -> dict[str, _Array]:
    try:
        if path.suffix.lower() != ".npz":
            return {"": _Array(closing.enter_context(path.open("rb")), str(path))}
        archive = closing.enter_context(zipfile.ZipFile(path))
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        members = {name: closing.enter_context(archive.open(name)) for name in names}
        return {name.removesuffix(".npy"): _Array(file, f"{path}, {name}") for name, file in members.items()}
    except (zipfile.BadZipFile, ValueError) as error:
        raise InputError(f"{path} cannot be read as a NumPy file: {error}") from None


class _Array:
    """One array in an open file, behind its header."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, self._dtype = read_header(file)
        if self._dtype.hasobject or not shape or (is_fortran and len(shape) > 1):
            raise InputError(
                f"{name} holds {self._dtype} of shape {shape}{' in Fortran order' if is_fortran else ''}; expected "
                "rows of numbers or text in C order: save it with numpy.ascontiguousarray"
            )
        self.file = file
        self.n_rows = shape[0]
        self._row_shape = shape[1:]
        self._name = name
        self.row_bytes = self._dtype.itemsize * math.prod(self._row_shape)

    def read(self, n_rows: int) -> NDArray[Any]:
        data = self.file.read(n_rows * self.row_bytes)
        if len(data) < n_rows * self.row_bytes:
            raise InputError(f"{self._name} ends before its last row")
        return np.frombuffer(data, self._dtype).reshape(n_rows, *self._row_shape)
