"""Images of every kind become arrays of one size; what is broken is a bad row."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_media import png
from PIL import Image

from lmrecipes.data import images
from lmrecipes.data.conversations import BadRow
from lmrecipes.data.images import ImageReader
from lmrecipes.data.inputs import ImageSpec

GREY, COLOUR = ImageReader("picture", ImageSpec(8, 8, 1, 1)), ImageReader("picture", ImageSpec(8, 8, 3, 1))
RAMP = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)


def read(cell: Any, reader: ImageReader = GREY, folder: Path | None = None) -> np.ndarray:
    values = reader(cell, folder).values
    assert values.dtype == np.uint8
    assert values.shape == (8, 8, reader.spec.channels)
    return values


def test_every_way_to_give_an_image(tmp_path: Path) -> None:
    content = png(RAMP)
    (tmp_path / "a.png").write_bytes(content)
    cells = [
        content, bytearray(content), "a.png", Path("a.png"), str(tmp_path / "a.png"), Image.fromarray(RAMP), RAMP,
        RAMP.tolist(), RAMP[:, :, None], RAMP / 255, {"bytes": content, "path": None}, {"bytes": None, "path": "a.png"},
        RAMP.astype(np.uint16) * 257,
    ]  # fmt: skip
    for cell in cells:
        assert np.array_equal(read(cell, folder=tmp_path)[:, :, 0], RAMP), type(cell)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "I", "I;16", "F", "HSV", "LAB"])
def test_every_mode(mode: str) -> None:
    black = Image.new("L", (20, 30), 0)
    if mode == "I;16":
        white = Image.fromarray(np.full((30, 20), 65535, np.uint16))
    elif mode in ("I", "F"):
        white = Image.fromarray(np.full((30, 20), 65535, np.int32) if mode == "I" else np.ones((30, 20), np.float32))
    elif mode == "LAB":
        from PIL import ImageCms

        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        white = ImageCms.applyTransform(Image.new("RGB", (20, 30), "white"), to_lab)
    else:
        white, black = Image.new("RGB", (20, 30), "white").convert(mode), black.convert("RGB").convert(mode)
        assert read(black, COLOUR).max() == 0
    assert white.mode == mode
    assert read(white, COLOUR).min() >= 254


def test_what_is_transparent_shows_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert read(png(clear)).min() == 255
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 0, 0, 0])
    assert read(png(palette)).max() == 0
    assert read(png(palette, transparency=1)).min() == 255


def test_the_orientation_that_a_camera_wrote() -> None:
    image = Image.fromarray(np.repeat(RAMP, 3, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    assert np.array_equal(read(png(image, exif=exif)), read(image.transpose(Image.Transpose.ROTATE_270)))


def test_reducing_averages_and_large_jpegs_are_read_at_a_fraction() -> None:
    board = (np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(read(board).astype(int) - 127).max() <= 1
    smooth = np.asarray(Image.fromarray(RAMP).resize((1600, 1200), Image.Resampling.BICUBIC))
    assert np.abs(read(png(smooth, "JPEG")).astype(int) - read(smooth)).max() <= 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from(["PNG", "BMP", "TIFF", "WEBP", "GIF"]))
def test_any_size(height: int, width: int, kind: str) -> None:
    assert read(png(np.full((height, width, 3), 200, np.uint8), kind), COLOUR).std() < 3


def test_the_digest_is_of_the_content_alone() -> None:
    content = png(np.repeat(RAMP, 4, axis=0))
    assert GREY(content, None).digest == COLOUR({"bytes": content, "path": "x"}, None).digest
    assert GREY(content, None).digest != GREY(png(RAMP), None).digest
    assert GREY(RAMP, None).digest != GREY(RAMP.T.copy(), None).digest


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        (b"GIF89a and then nonsense", "broken image|no image"),
        (b"", "no image"),
        (png(np.zeros((50, 50), np.uint8))[:50], "broken image"),
        (png(np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8), "JPEG")[:900], "broken image"),
        ("nowhere.png", "nowhere.png cannot be read .No such file"),
        (7, "neither a path nor the bytes"),
        ([[1, 2], [3]], "no array of intensities"),
        (np.zeros((4, 4, 7), np.uint8), r"uint8 \[4, 4, 7\]"),
        (np.zeros((0, 4), np.uint8), r"\[0, 4\]"),
        (np.full((4, 4), 300), "int64 intensities outside 0 to 255"),
        (np.full((4, 4), np.nan), "float64 intensities outside 0 to 1"),
        (np.full((4, 4), -1), "outside 0 to 255"),
    ],
)
def test_bad_rows(cell: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(BadRow, match=f"^'picture'.*({why})"):
        GREY(cell, tmp_path)


def test_an_image_of_too_many_pixels_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_PIXELS", 99)
    for cell in (png(np.zeros((10, 10), np.uint8)), np.zeros((10, 10), np.uint8)):
        with pytest.raises(BadRow, match="10 x 10 pixels, more than 99"):
            GREY(cell, None)


def test_bombs_that_pillow_refuses_itself() -> None:
    bomb = png(Image.new("1", (20_000, 20_000)))  # 400 million pixels in a few kilobytes
    with pytest.raises(BadRow, match=r"broken image: .*decompression bomb"):
        GREY(bomb, None)


def test_paths_may_be_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(RAMP))
    with pytest.raises(BadRow, match="paths are not read here"):
        GREY(str(tmp_path / "a.png"), None)
