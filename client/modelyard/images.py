"""Reads an image file as one sample of a digit model. Data sets are read elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from modelyard.digits import SIDE_PIXELS
from modelyard.errors import ConfigurationError, InputError

if TYPE_CHECKING:
    import PIL.Image

Sample: TypeAlias = NDArray[np.float32]
MAX_IMAGE_BYTES = 64 * 2**20


def load_png_28(path: str | Path) -> Sample:
    """Read a picture of one digit in MNIST's form: a light digit on a dark background.

    Any size, colour or transparency is accepted: transparent parts count as white, and the picture is padded to a
    square, scaled to 28x28, and inverted if its background is light.

    Args:
        path: The image file; PNG, or another format that Pillow reads.

    Returns:
        One sample: float32, shape (1, 1, 28, 28), in [0, 1].

    Raises:
        InputError: The file is missing, damaged, far too large, or not an image.
    """
    grey = _read_grey(Path(path))
    background = _background(grey)
    if background > 0.5:
        grey, background = 1 - grey, 1 - background
    return _resized(_squared(grey, background)).reshape(1, 1, SIDE_PIXELS, SIDE_PIXELS)


def _read_grey(path: Path) -> NDArray[np.float32]:
    """Pixels of a file: float32, shape (height, width), 0 black to 1 white."""
    try:
        from PIL import Image
    except ImportError:
        raise ConfigurationError(
            "reading an image needs Pillow: pip install 'modelyard-client[pictures]'"
        ) from None
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise InputError(f"{path} is larger than {MAX_IMAGE_BYTES // 2**20} MiB; give a smaller image")
        with Image.open(path) as image:
            return _grey_fractions(image)
    except OSError as error:  # UnidentifiedImageError is one too
        reason = error.strerror or "it is not an image that Pillow can read, or it is damaged"
        raise InputError(f"cannot read the image {path}: {reason}; give a PNG or JPEG file") from None
    except (ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read the image {path}: {error}; give a PNG or JPEG file") from None


def _grey_fractions(image: PIL.Image.Image) -> NDArray[np.float32]:
    """A picture as float32, shape (height, width), in [0, 1], on white where it is transparent."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits a pixel, which convert("L") would clip at 255
        fractions: NDArray[np.float32] = np.asarray(image, dtype=np.float32) / np.float32(65535)
        return fractions.clip(0, 1)
    rgba = image.convert("RGBA")
    on_paper = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(on_paper.convert("L"), dtype=np.float32) / np.float32(255)


def _background(grey: NDArray[np.float32]) -> float:
    """Median of the outermost pixels, which a centred digit does not cover."""
    edges = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    return float(np.median(np.concatenate(edges)))


def _squared(grey: NDArray[np.float32], background: float) -> NDArray[np.float32]:
    """Pad the shorter side with background, so that scaling does not distort the digit."""
    height, width = grey.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    margins = ((top, side - height - top), (left, side - width - left))
    return np.pad(grey, margins, constant_values=background)


def _resized(square: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale to 28x28 with an averaging filter, so that thin strokes survive a large picture."""
    from PIL import Image

    if square.shape == (SIDE_PIXELS, SIDE_PIXELS):
        return square
    scaled = Image.fromarray(square).resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(scaled, dtype=np.float32), 0, 1)
