"""Which contracts take images, and how a row of theirs holds one. Decodes none, so that any process may import it."""

from __future__ import annotations

import msgspec
import numpy as np

from app.contract import FREE, ColumnsContract, Contract, TensorContract, TensorField, TensorsContract

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
WHITE = 255


class Layout(msgspec.Struct, frozen=True):
    """A tensor whose rows are images.

    Attributes:
        height: Of an image in pixels, `FREE` if any.
        width: Likewise.
        channels: One of `CHANNELS`.
        place: Where a row has its channels: 0 or 2; None if it has no dimension for them.
        white: The value of a white pixel.
    """

    field: TensorField
    height: int
    width: int
    channels: int
    place: int | None
    white: int

    def describe(self) -> str:
        """The images in words, for error messages."""
        height, width = ("any" if size == FREE else str(size) for size in (self.height, self.width))
        colours = {1: "grey", 3: "RGB", 4: "RGBA"}[self.channels]
        return f"{colours} images of {width} x {height} pixels (width x height)"


def layout_of(contract: Contract) -> Layout | None:
    """The layout in which images are rows of a contract's only tensor; None if they are not."""
    if isinstance(contract, TensorContract):
        contract = contract.as_tensors
    if not isinstance(contract, TensorsContract) or len(contract.tensors) > 1:
        return None
    [field] = contract.tensors
    row = field.shape[1:]
    dtype = np.dtype("object" if field.dtype == "str" else field.dtype)
    if dtype.kind not in "fiu" or dtype == np.int8 or field.shape[:1] not in ((FREE,), (1,)):
        return None
    white = contract.image_scale if dtype.kind == "f" else WHITE
    if len(row) == 2:
        return Layout(field, row[0], row[1], 1, None, white)
    places = [place for place in (0, 2) if len(row) == 3 and row[place] in CHANNELS]
    if len(places) != 1:  # no channels, or one cannot tell which
        return None
    [place] = places
    height, width = row[1:] if place == 0 else row[:2]
    return Layout(field, height, width, row[place], place, white)


def column_of(contract: ColumnsContract) -> int | None:
    """The place of the column that takes images as bytes: the only binary one, if no other is required."""
    places = [place for place, each in enumerate(contract.columns) if each.type.kind == "binary"]
    others = [each for each in contract.columns if each.required and each.type.kind != "binary"]
    return places[0] if len(places) == 1 and not others else None


def takes_images(contract: Contract) -> bool:
    """Whether a body may be an image."""
    if isinstance(contract, ColumnsContract):
        return column_of(contract) is not None
    return layout_of(contract) is not None
