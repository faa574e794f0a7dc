"""Reads NumPy archives (`numpy.savez`): arrays by name. Runs in a reader process only: they may be compressed."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from app.contract import SHOWN, ColumnsContract, Contract, TensorContract, TensorsContract, spellings
from app.contract.documents import TABLE, Document
from app.contract.npy import read_plain_npy
from app.server_errors import (
    BodyNotArrayError,
    InputEmptyError,
    InputShapeError,
    ModelyardError,
    TooLargeError,
)

MAX_ARRAYS = 1024
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Arrays:
    """Arrays by name that have not been compared with a contract yet."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays

    def document(self, contract: Contract) -> Document:
        """The arrays in the form that a contract takes: tensors or columns by name, or one tensor of any name.

        Raises:
            InputShapeError: There is more than one array for one tensor, or an array is not a column.
        """
        if isinstance(contract, ColumnsContract):
            return Document(TABLE, self._columns(contract))
        if not isinstance(contract, TensorContract | TensorsContract):
            return Document("inputs", {name: each.tolist() for name, each in self._arrays.items()})
        fields = contract.as_tensors.tensors if isinstance(contract, TensorContract) else contract.tensors
        if fields[0].name is not None:
            return Document("inputs", dict(self._arrays))
        if len(self._arrays) > 1:
            raise InputShapeError(
                f"the archive has {len(self._arrays)} arrays; expected one with {contract.describe()}"
            )
        [array] = self._arrays.values()
        if isinstance(contract, TensorContract):
            n_samples = array.size // contract.sample_size
            if array.shape in spellings(contract.sample_shape, n_samples):
                array = array.reshape(n_samples, *contract.sample_shape)
        return Document("data", array)

    def _columns(self, contract: ColumnsContract) -> tuple[dict[str, list[Any]], int]:
        if not contract.has_names:
            raise InputShapeError(f"an archive has no order of columns; expected {contract.describe()}")
        names = [str(each.name) for each in contract.columns if str(each.name) in self._arrays]
        if not names:
            raise InputShapeError(f"no array has the name of a column; expected {contract.describe()}")
        shapes = {name: self._arrays[name].shape for name in names}
        if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) > 1:
            shown = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
            raise InputShapeError(
                f"the columns have the shapes {shown[: SHOWN * 4]}; expected one value a row in each"
            )
        return {name: self._arrays[name].tolist() for name in names}, shapes[names[0]][0]


def read_npz(body: bytes, max_bytes: int) -> Arrays:
    """Read an archive.

    Raises:
        BodyNotArrayError: It is not an archive of NumPy files, or it is damaged.
        TooLargeError: The arrays have more than `max_bytes`.
        InputEmptyError: It holds no array.
        InputTypeError: An array holds neither numbers nor booleans nor text.
    """
    try:
        files = _unpacked(body, max_bytes)
    except (ModelyardError, MemoryError):
        raise
    except Exception:  # a damaged archive may raise any error
        raise BodyNotArrayError(
            "the body is not a complete archive of NumPy files; write it with numpy.savez"
        ) from None
    if not files:
        raise InputEmptyError("the archive holds no array; expected at least one")
    return Arrays(
        {name: read_plain_npy(content, f"the array {name[:SHOWN]!r}") for name, content in files.items()}
    )


def _unpacked(body: bytes, max_bytes: int) -> dict[str, bytes]:
    """The content of each file by its name, without decompressing more than `max_bytes`."""
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise TooLargeError(f"{len(members)} arrays in one archive; at most {MAX_ARRAYS} are accepted")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if member.compress_type not in METHODS or name in files:
                raise BodyNotArrayError(
                    f"the archive's file {name[:SHOWN]!r} occurs twice, or is compressed otherwise than by deflate"
                )
            with archive.open(member) as file:
                files[name] = file.read(max_bytes + 1)
            max_bytes -= len(files[name])
            if max_bytes < 0:
                raise TooLargeError(
                    "the uncompressed arrays have too many bytes; send fewer samples per request"
                )
    return files
