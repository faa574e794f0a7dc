"""NumPy files as request bodies. Nothing is unpickled, and a header is believed only as far as there are bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.errors import BodyNotArrayError

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy(body: bytes) -> NDArray[Any]:
    """The array of a NumPy file, of whatever dtype but objects.

    Raises:
        BodyNotArrayError: It is no such file, or not a whole one.
    """
    file = io.BytesIO(body)
    try:
        read_header = _HEADERS[npy.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
        array: NDArray[Any] = np.frombuffer(body, dtype, offset=file.tell())
        return array.reshape(shape, order="F" if is_fortran else "C")
    except Exception:  # a damaged header may raise whatever Python's own parser does
        raise BodyNotArrayError(
            "the body is not a NumPy file of numbers, or not a whole one; write it with numpy.save"
        ) from None
