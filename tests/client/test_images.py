from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.server_errors import InputError
from modelyard.images import load_png_28


def drawing(mode: str, background: object, ink: object, size: tuple[int, int] = (280, 280)) -> Image.Image:
    image = Image.new(mode, size, background)  # type: ignore[arg-type]
    width, height = size
    bar = (width // 2 - width // 14, height // 5, width // 2 + width // 14, height - height // 5)
    ImageDraw.Draw(image).rectangle(bar, fill=ink)  # type: ignore[arg-type]
    return image


@pytest.mark.parametrize(
    ("mode", "background", "ink"),
    [
        ("L", 255, 0),
        ("L", 0, 255),
        ("RGB", "white", "navy"),
        ("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)),
        ("1", 1, 0),
        ("I;16", 65535, 0),
        ("P", 0, 1),
    ],
)
def test_every_kind_of_drawing_becomes_a_light_digit_on_dark(
    tmp_path: Path, mode: str, background: object, ink: object
) -> None:
    image = drawing(mode, background, ink)
    if mode == "P":
        image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "one.png")
    sample = load_png_28(tmp_path / "one.png")
    assert sample.dtype == np.float32
    assert sample.shape == (1, 1, 28, 28)
    assert sample.min() >= 0
    assert sample.max() <= 1
    assert sample[0, 0, 0, 0] < 0.01
    assert sample[0, 0, 14, 14] > 0.8


def test_wide_drawing_keeps_its_proportions(tmp_path: Path) -> None:
    image = Image.new("L", (400, 200), 255)
    ImageDraw.Draw(image).rectangle((150, 50, 250, 150), fill=0)
    image.save(tmp_path / "square.png")
    ink = load_png_28(tmp_path / "square.png")[0, 0] > 0.5
    assert np.flatnonzero(ink.any(axis=0)).size == np.flatnonzero(ink.any(axis=1)).size == 7


def test_image_of_the_right_size_is_taken_pixel_by_pixel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 0
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    sample = load_png_28(tmp_path / "exact.png")
    np.testing.assert_array_equal(sample[0, 0], pixels.astype(np.float32) / 255)


def test_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_png_28(tmp_path / "absent.png")


def test_file_that_is_no_image_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("seven")
    with pytest.raises(InputError, match="not an image"):
        load_png_28(tmp_path / "text.png")


@pytest.mark.parametrize("kept_bytes", [20, 60, 120])
def test_truncated_image_is_an_input_error(tmp_path: Path, kept_bytes: int) -> None:
    drawing("RGB", "white", "red").save(tmp_path / "whole.png")
    damaged = (tmp_path / "whole.png").read_bytes()[:kept_bytes]
    (tmp_path / "damaged.png").write_bytes(damaged)
    with pytest.raises(InputError):
        load_png_28(tmp_path / "damaged.png")
