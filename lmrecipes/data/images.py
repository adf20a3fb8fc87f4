"""Images of any kind -> uint8 [height, width, channels], by Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lmrecipes.data.conversations import BadRow
from lmrecipes.data.inputs import ImageSpec
from lmrecipes.data.labels import short
from lmrecipes.data.media_cells import ReadMedia, array_digest, digest, file_bytes

MOST_PIXELS = 2**26
"""An image with more is refused before it is decoded: a small file may claim to hold any number (Pillow itself warns
from 89 million on)."""
REDUCE_TO = 3
"""JPEG files much larger than what is asked for are decoded at a fraction of their size, at least this many times as
large."""


@dataclass(frozen=True)
class ImageReader:
    """Reads the cells of a column."""

    column: str
    spec: ImageSpec

    def __call__(self, cell: Any, folder: Path | None) -> ReadMedia:
        """uint8 [height, width, channels]. Raises BadRow."""
        if isinstance(cell, Image.Image):
            found = array_digest(np.asarray(cell))
            return ReadMedia(self._fitted(cell), found)
        if isinstance(cell, (list, tuple, np.ndarray)):
            array = self._intensities(cell)
            return ReadMedia(self._fitted(Image.fromarray(array)), array_digest(array))
        content = file_bytes(cell, self.column, folder)
        return ReadMedia(self._decoded(content), digest(content))

    def _decoded(self, content: bytes) -> NDArray[np.uint8]:
        try:
            with Image.open(BytesIO(content)) as image:
                return self._fitted(image)
        except BadRow:
            raise
        except Image.UnidentifiedImageError:
            raise BadRow(f"{self.column!r} is no image that Pillow reads ({len(content):,} bytes)") from None
        except Exception as error:  # noqa: BLE001 - decoders raise all sorts of errors on broken files
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadRow(f"{self.column!r} is a broken image: {reason[0]}") from None

    def _fitted(self, image: Image.Image) -> NDArray[np.uint8]:
        if image.width * image.height > MOST_PIXELS:
            size = f"{image.width:,} x {image.height:,} pixels"
            raise BadRow(f"{self.column!r} has {size}, more than {MOST_PIXELS:,}")
        height, width = self.spec.height, self.spec.width
        image.draft(None, (REDUCE_TO * max(height, width),) * 2)  # of other formats than JPEG nothing changes
        image = ImageOps.exif_transpose(image)
        mode = "L" if self.spec.channels == 1 else "RGB"
        image = _eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(image, np.uint8).reshape(height, width, self.spec.channels)

    def _intensities(self, cell: Any) -> NDArray[np.uint8]:
        """An array's intensities in 256 steps: uint8 [height, width] or [height, width, 3 or 4]. Raises BadRow."""
        try:
            array = np.asarray(cell)
        except ValueError:  # lists of different lengths
            array = np.zeros(0, object)
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        kind, shape = array.dtype.kind, array.shape
        if kind not in "buif" or array.ndim not in (2, 3) or 0 in shape or (array.ndim == 3 and shape[2] not in (3, 4)):
            what = f"{array.dtype} {list(shape)}" if kind != "O" else short(cell)
            raise BadRow(f"{self.column!r} is {what}, no array of intensities [height, width] or [height, width, 3]")
        if shape[0] * shape[1] > MOST_PIXELS:
            raise BadRow(f"{self.column!r} has {shape[1]:,} x {shape[0]:,} pixels, more than {MOST_PIXELS:,}")
        white = {"b": 1, "f": 1}.get(kind, 65535 if array.dtype == np.uint16 else 255)
        if not (array.min() >= 0 and array.max() <= white):  # also of NaN
            raise BadRow(f"{self.column!r} holds {array.dtype} intensities outside 0 to {white}")
        return array.astype(np.uint8) if white == 255 else np.rint(array * (255.0 / white)).astype(np.uint8)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Images of 16 bits (also where Pillow keeps them in 32) or of floats from 0 to 1 in 256 steps; others as they
    are."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) / 257 + 0.5).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray((np.clip(np.nan_to_num(np.asarray(image)), 0, 1) * 255 + 0.5).astype(np.uint8))
    return image
