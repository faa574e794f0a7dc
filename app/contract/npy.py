"""NumPy files as request bodies. Nothing is unpickled, and a header's size is checked against the received bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.contract import SHOWN
from app.server_errors import BodyNotArrayError, InputTypeError

KINDS = "biufU"  # booleans, numbers and text
LARGEST_FLOAT_BYTES = 8
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_plain_npy(body: bytes, what: str = "the file") -> NDArray[Any]:
    """The array of a NumPy file, if JSON has its values: numbers of at most 64 bits, booleans or text.

    Args:
        what: What holds the array, for error messages.

    Raises:
        BodyNotArrayError: It is not such a file, or it is incomplete.
        InputTypeError: Its dtype is another.
    """
    array = read_npy(body)
    if array.dtype.kind not in KINDS or (
        array.dtype.kind == "f" and array.dtype.itemsize > LARGEST_FLOAT_BYTES
    ):
        raise InputTypeError(
            f"{what} holds {str(array.dtype)[:SHOWN]}; expected numbers of at most 64 bits, booleans or text"
        )
    return array


def read_npy(body: bytes) -> NDArray[Any]:
    """The array of a NumPy file, with any dtype except objects.

    Raises:
        BodyNotArrayError: It is not such a file, or it is incomplete.
    """
    file = io.BytesIO(body)
    try:
        read_header = _HEADERS[npy.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
        array: NDArray[Any] = np.frombuffer(body, dtype, offset=file.tell())
        return array.reshape(shape, order="F" if is_fortran else "C")
    except Exception:  # a damaged header may raise any error of Python's own parser
        raise BodyNotArrayError(
            "the body is not a complete NumPy file of numbers, or it holds objects; write it with numpy.save"
        ) from None
