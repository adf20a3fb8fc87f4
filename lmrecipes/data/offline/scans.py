"""scikit-learn's 1,797 scans of handwritten digits as pictures, and the pools that part them.

Each scan belongs to one of POOLS pools, and every pool has all digits. A pool is the group of what is made of its
scans, in every data set: a scan of the test is never seen in training, whichever tasks are mixed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmrecipes.data.offline.digits import DARKEST, SIDE
from lmrecipes.data.offline.grouping import Row
from lmrecipes.data.permutation import hash_key

POOLS = 60
SIZES = (8, 12, 16, 24, 32)
"""Sides of the pictures of `digit_images`."""


@dataclass(frozen=True)
class Scans:
    """ink: uint8 [n, 8, 8], 255 where it is darkest; digits, pools: [n]."""

    ink: NDArray[np.uint8]
    digits: NDArray[np.int64]
    pools: NDArray[np.int64]

    def of(self, digit: int, pool: int) -> NDArray[np.int64]:
        """Numbers of the scans of a digit in a pool."""
        return np.flatnonzero((self.digits == digit) & (self.pools == pool))


def scans(folder: Path) -> Scans:
    """All scans in their order. folder: scikit-learn's own."""
    cells = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
    ink, digits = cells[:, :-1].reshape(-1, SIDE, SIDE), cells[:, -1]
    pools = np.empty_like(digits)
    for digit in np.unique(digits):
        chosen = np.flatnonzero(digits == digit)
        pools[chosen] = np.arange(len(chosen)) % POOLS
    return Scans((ink * 255 // DARKEST).astype(np.uint8), digits, pools)


def pool_name(pool: int) -> str:
    """A pool as a group."""
    return f"digits {pool}"


def png(image: Image.Image) -> bytes:
    """The file's bytes."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def digit_images(folder: Path) -> list[Row]:
    """PNG files of the scans, dark on light, in sides of 8 to 32 pixels, and the digit. Group: the pool."""
    found = scans(folder)
    rows = []
    for number, (ink, digit, pool) in enumerate(zip(found.ink, found.digits, found.pools, strict=True)):
        side = SIZES[hash_key("digit_images", number) % len(SIZES)]
        image = Image.fromarray(255 - ink).resize((side, side), Image.Resampling.BICUBIC)
        rows.append({"image": {"bytes": png(image), "path": None}, "label": str(digit), "group": pool_name(int(pool))})
    return rows
