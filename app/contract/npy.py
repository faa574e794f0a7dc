"""NumPy files as request bodies. Nothing is unpickled, and a header's size is checked against the received bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from app.server_errors import BodyNotArrayError

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


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
            "the body is not a complete NumPy file of numbers; write it with numpy.save"
        ) from None
