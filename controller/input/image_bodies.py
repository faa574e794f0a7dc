"""Reads PNG and JPEG images as rows of a tensor, or as the bytes of a binary column. Runs in a reader process only.

An image must have the size of the contract, and a conversion of its colours must lose nothing. The size is read from
its header before a pixel is decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from python_multipart.multipart import MultipartParser, parse_options_header

from app.contract import FREE, SHOWN, ColumnsContract, Contract, Param
from app.contract.documents import TABLE, Document
from app.server_errors import (
    BodyKeyError,
    BodyNotArrayError,
    InputEmptyError,
    InputShapeError,
    InputTypeError,
    ModelyardError,
    TooLargeError,
)
from controller.input.bodies import MULTIPART, media_type
from controller.input.image_layout import WHITE, Layout, column_of, layout_of

Pixels = NDArray[Any]
FORMATS = ("PNG", "JPEG")
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})  # 8 bits a channel, or fewer
PNG_BIT_DEPTH = 24  # its place in a PNG file
OPAQUE = (255, 255)
MAX_FIELDS = 64
DATA_URL = re.compile(r"data:image/[a-z+.-]+;base64,", re.ASCII | re.IGNORECASE)


class Images:
    """Images and parameters that have not been compared with a contract yet.

    Args:
        files: The encoded images.
        fields: Text of each parameter by name.
    """

    def __init__(self, files: Sequence[bytes], fields: Mapping[str, str], max_bytes: int) -> None:
        if not files:
            raise InputEmptyError("the body holds no image; expected at least one")
        self._files = list(files)
        self._fields = fields
        self._max_bytes = max_bytes

    def document(self, contract: Contract) -> Document:
        """The images as the rows of a contract.

        Raises:
            InputShapeError: The contract takes no images, or none of this size.
            InputTypeError: A conversion would lose colours or transparency.
            BodyNotArrayError: A file is not a PNG or JPEG image, or it is damaged.
            TooLargeError: The pixels have too many bytes.
        """
        types = {each.name: each for each in contract.params}
        params = {name: _param(text, types.get(name)) for name, text in self._fields.items()} or None
        if isinstance(contract, ColumnsContract):
            return Document(TABLE, (self._as_column(contract), len(self._files)), params)
        layout = layout_of(contract)
        if layout is None:
            raise InputShapeError(f"the version takes no images; expected {contract.describe()}")
        pixels = decode(self._files, layout, self._max_bytes)
        name = layout.field.name
        return Document("data", pixels if name is None else {name: pixels}, params)

    def _as_column(self, contract: ColumnsContract) -> dict[str, list[Any]] | list[list[Any]]:
        place = column_of(contract)
        if place is None:
            raise InputShapeError(
                f"images are taken for one binary column, with no other required; expected {contract.describe()}"
            )
        if contract.has_names:
            return {str(contract.columns[place].name): list(self._files)}
        return [list(self._files)]


def read_images(content_type: bytes, body: bytes, max_files: int, max_bytes: int) -> Images:
    """Read a body that is one image, or a form with several of them.

    Args:
        max_bytes: Of the decoded pixels in the contract's dtype.

    Raises:
        BodyNotArrayError: It is a form, and damaged.
        BodyKeyError: Two fields of the form have the same name.
        InputEmptyError: It holds no image.
        TooLargeError: It holds more files.
    """
    if media_type(content_type) != MULTIPART:
        return Images([body] if body else [], {}, max_bytes)
    files, fields = _Form(content_type, max_files).read(body)
    return Images(files, fields, max_bytes)


def with_images(document: Document, contract: Contract, max_bytes: int) -> Document:
    """A JSON document with the pixels of its images, if it holds images and the contract takes them.

    Raises:
        ModelyardError: They are not base64, or they do not fit; see `Images.document`.
    """
    layout = layout_of(contract)
    files = _found(document.value, layout.field.name) if layout else None
    if layout is None or not files:
        return document
    pixels = decode([_from_base64(each, place) for place, each in enumerate(files)], layout, max_bytes)
    name = layout.field.name
    return Document(document.key, pixels if name is None else {name: pixels}, document.params)


def _found(value: Any, name: str | None) -> list[Any] | None:
    """The images of a JSON value, each as JSON spells it; None if it holds anything else."""
    if type(value) is dict and name is not None and value.keys() == {name}:
        value = value[name]
    rows = value if type(value) is list else [value]
    if name is not None:
        rows = [row[name] if type(row) is dict and row.keys() == {name} else row for row in rows]
    return rows if all(map(_is_image, rows)) else None


def _is_image(value: Any) -> bool:
    if type(value) is dict:
        return value.keys() == {"b64"} and type(value["b64"]) is str
    return type(value) is str and DATA_URL.match(value) is not None


def _from_base64(value: Any, place: int) -> bytes:
    text = value["b64"] if type(value) is dict else value
    head = DATA_URL.match(text)
    try:
        return base64.b64decode("".join(text[head.end() if head else 0 :].split()), validate=True)
    except (ValueError, binascii.Error):
        raise InputTypeError(f"image {place}: got {text[:SHOWN]!r}; expected base64") from None


def decode(files: Sequence[bytes], layout: Layout, max_bytes: int) -> Pixels:
    """The pixels of images, in the dtype and shape of a tensor.

    Raises:
        ModelyardError: See `Images.document`.
    """
    dtype = np.dtype(layout.field.dtype)
    opened = [_open(file, place) for place, file in enumerate(files)]
    n_bytes = 0
    for place, image in enumerate(opened):
        _check_size(image, layout, place)
        if image.size != opened[0].size:
            raise InputShapeError(
                f"image {place} has {_size(image)} pixels, and image 0 has {_size(opened[0])}; expected the same"
            )
        n_bytes += image.width * image.height * layout.channels * dtype.itemsize
        if n_bytes > max_bytes:
            raise TooLargeError(
                f"the images have more than {max_bytes} bytes as {dtype.name}; send fewer images per request"
            )
    rows = np.stack([_pixels(image, layout, place) for place, image in enumerate(opened)])
    if layout.place is None:
        rows = rows[..., 0]
    elif layout.place == 0:
        rows = np.moveaxis(rows, 3, 1)
    rows = np.ascontiguousarray(rows)
    if layout.white == WHITE:
        return rows.astype(dtype)
    divided: Pixels = rows / np.array(WHITE, np.float64 if dtype.itemsize == 8 else np.float32)
    return divided.astype(dtype, copy=False)


def _open(file: bytes, place: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file), formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooLargeError(
            f"image {place} has more pixels than any image may have; send a smaller one"
        ) from None
    except Exception:  # a damaged header may raise any error
        raise BodyNotArrayError(
            f"image {place} is not a PNG or JPEG image, or its header is damaged"
        ) from None
    if getattr(image, "n_frames", 1) > 1:
        raise InputShapeError(f"image {place} has several frames; expected one image a file")
    if image.format == "PNG" and file[PNG_BIT_DEPTH] > 8:
        raise InputTypeError(f"image {place} has 16 bits a channel; expected 8")
    return image


def _check_size(image: Image.Image, layout: Layout, place: int) -> None:
    if layout.width not in (FREE, image.width) or layout.height not in (FREE, image.height):
        raise InputShapeError(f"image {place} has {_size(image)} pixels; expected {layout.describe()}")


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _pixels(image: Image.Image, layout: Layout, place: int) -> Pixels:
    """uint8, shape (height, width, channels)."""
    if image.mode not in MODES:
        raise InputTypeError(f"image {place} has the colours {image.mode}; expected {layout.describe()}")
    try:
        image.load()
        return _converted(image, layout, place)
    except (ModelyardError, MemoryError):
        raise
    except Exception:  # as for its header
        raise BodyNotArrayError(f"image {place} is damaged or truncated") from None


def _converted(image: Image.Image, layout: Layout, place: int) -> Pixels:
    if layout.channels == 4:
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema() != OPAQUE:
            raise InputTypeError(f"image {place} has transparent pixels; expected {layout.describe()}")
    if layout.channels == 3:
        return np.asarray(image.convert("RGB"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., np.newaxis]
    colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise InputTypeError(f"image {place} has colours; expected {layout.describe()}")
    return colours[..., :1]


def _param(text: str, param: Param | None) -> Any:
    """A parameter's value from the text of a form's field; text of another type is refused where types are checked."""
    if param is None or (param.type in ("string", "datetime") and not param.is_list):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return text


class _Form:
    """A body of type `multipart/form-data`: a part with a file name or a type of its own is a file."""

    def __init__(self, content_type: bytes, max_files: int) -> None:
        _, options = parse_options_header(content_type)
        self._boundary = options.get(b"boundary", b"")
        self._max_files = max_files
        self._files: list[bytes] = []
        self._fields: dict[str, str] = {}
        self._is_over = False
        self._reset()

    def read(self, body: bytes) -> tuple[list[bytes], dict[str, str]]:
        """The files, and the text of each other field by name."""
        if not self._boundary:
            raise BodyNotArrayError(
                "the content type has no boundary; expected multipart/form-data; boundary=…"
            )
        try:
            parser = MultipartParser(
                self._boundary,
                {
                    "on_part_begin": self._reset,
                    "on_header_field": self._take_name,
                    "on_header_value": self._take_value,
                    "on_header_end": self._end_header,
                    "on_part_data": self._take_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
            parser.write(body)
            parser.finalize()
        except ModelyardError:
            raise
        except Exception as error:  # the parser's own, or one of a header that is not what it seems
            raise BodyNotArrayError(f"the body is no multipart form ({str(error)[:SHOWN]})") from None
        if not self._is_over:
            raise BodyNotArrayError("the form is truncated; expected the boundary with -- at its end")
        return self._files, self._fields

    def _reset(self) -> None:
        self._name, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}
        self._data: list[bytes] = []

    def _take_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _take_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end_part(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        data = b"".join(self._data)
        if b"filename" in options or self._headers.get(b"content-type", b"").startswith(b"image/"):
            if len(self._files) == self._max_files:
                raise TooLargeError(f"more than {self._max_files} images in one request; send fewer")
            self._files.append(data)
            return
        name = options.get(b"name", b"").decode()
        if not name or name in self._fields or len(self._fields) == MAX_FIELDS:
            raise BodyKeyError(
                f"the form has a field without a name, one twice, or more than {MAX_FIELDS}: {name[:SHOWN]!r}"
            )
        self._fields[name] = data.decode()

    def _end(self) -> None:
        self._is_over = True
