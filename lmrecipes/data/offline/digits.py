"""Handwritten digits that come with scikit-learn: 1,797 scans of 8 x 8 pixels, here scaled up to 28 x 28.

The test part of UCI's Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998). Who wrote a digit is not
recorded: held-out digits are of the same 13 writers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.offline.grouping import Row

SIDE = 8
LARGE = 28
DARKEST = 16
"""Intensities of the scans run from 0 to this."""


def digits(folder: Path) -> list[Row]:
    """Rows of ids (784 intensities from 0 to 255, line by line) and label. folder: scikit-learn's own."""
    cells = np.loadtxt(folder / "datasets" / "data" / "digits.csv.gz", delimiter=",", dtype=np.int64)
    scans = enlarged(cells[:, :-1].reshape(-1, SIDE, SIDE)).reshape(len(cells), -1)
    labels = map(str, cells[:, -1].tolist())
    return [{"ids": scan, "label": label} for scan, label in zip(scans.tolist(), labels, strict=True)]


def enlarged(scans: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n, 8, 8] of 0 to 16 -> [n, 28, 28] of 0 to 255, bilinear between the centres of pixels.

    Weights are whole numbers of 56ths, and all sums are of integers: the same on every machine.
    """
    parts = 2 * LARGE
    weights = np.zeros((LARGE, SIDE), np.int64)
    for line in range(LARGE):
        centre = (2 * line + 1) * SIDE - LARGE  # in 56ths of a pixel, from the centre of the first
        first, beyond = divmod(min(max(centre, 0), (SIDE - 1) * parts), parts)
        weights[line, first] += parts - beyond
        if beyond:
            weights[line, first + 1] += beyond
    whole = DARKEST * parts**2
    return (2 * 255 * (weights @ scans @ weights.T) + whole) // (2 * whole)
