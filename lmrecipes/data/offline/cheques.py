"""Cheques: an amount in words beside a picture of the amount in real handwritten digits. Fraud is where they differ.

Two different amounts make four cheques: both texts with both pictures. So the texts of genuine and of fraudulent
cheques are the same amounts, and so are the pictures: neither alone says anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmrecipes.data.offline.amounts import phrased
from lmrecipes.data.offline.grouping import Row
from lmrecipes.data.offline.scans import POOLS, Scans, png, pool_name, scans
from lmrecipes.data.permutation import hash_key, hash_uniform

PLACES = ("hundreds", "tens", "units")
PAIRS = 2500
"""Pairs of amounts in `cheques`."""
READINGS = 9000
"""Rows of `cheque_amounts`."""
HEIGHT, WIDTH = 40, 120
"""Pixels of a picture."""
GLYPH = 38
_INKS = ((18, 24, 66), (20, 20, 20), (24, 52, 120), (52, 18, 40))
_PAPERS = 32


def cheques(folder: Path) -> list[Row]:
    """Columns text, image, label (genuine or fraud). Group: the pool of the picture's scans. folder: scikit-learn's.

    The picture of a fraud has one digit changed, or two digits swapped.
    """
    found, rows = scans(folder), []
    for pair, (first, second) in enumerate(_pairs()):
        pool = pair % POOLS
        for case, (said, drawn) in enumerate(((first, first), (first, second), (second, first), (second, second))):
            name = f"cheques {pair} {case}"
            label = "genuine" if said == drawn else "fraud"
            picture = {"bytes": png(draw(found, pool, drawn, name)), "path": None}
            rows.append({"text": phrased(said, name), "image": picture, "label": label, "group": pool_name(pool)})
    return rows


def cheque_amounts(folder: Path) -> list[Row]:
    """Columns text, image and label: every place with its digit ("hundreds 7"). Group: as in `cheques`.

    Of six rows one has the words alone, one has both, of one amount, and four the picture alone, which is harder to
    read. The same words alone are always of one group.
    """
    found, rows = scans(folder), []
    amounts = 100 + (900 * _uniform("amounts", READINGS)).astype(int)
    for number, amount in enumerate(map(int, amounts)):
        name, kind = f"amounts {number}", number // POOLS % 6
        text, picture, pool = phrased(amount, name), None, number % POOLS
        if kind == 0:
            pool = hash_key("words", text.casefold()) % POOLS
        else:
            picture = {"bytes": png(draw(found, pool, amount, name)), "path": None}
        label = [f"{place} {digit}" for place, digit in zip(PLACES, str(amount), strict=True)]
        said = text if kind < 2 else None
        rows.append({"text": said, "image": picture, "label": label, "group": pool_name(pool)})
    return rows


def _uniform(purpose: str, count: int) -> NDArray[np.float64]:
    return hash_uniform(hash_key("cheques", purpose), np.arange(count))


def _pairs() -> Iterator[tuple[int, int]]:
    """Two amounts of three digits each that differ in one digit, or by two digits that changed places."""
    kinds, changes = _uniform("kind", 2 * PAIRS), _uniform("change", 2 * PAIRS)
    amounts = 100 + (900 * _uniform("first", 2 * PAIRS)).astype(int)
    given = 0
    for amount, kind, change in zip(amounts.tolist(), kinds.tolist(), changes.tolist(), strict=True):
        digits, place = [int(digit) for digit in str(amount)], int(3 * change)
        if kind < 0.3:
            other = (place + 1) % 3
            digits[place], digits[other] = digits[other], digits[place]
        else:
            digits[place] = (digits[place] + 1 + int(9 * (3 * change % 1))) % 10
        second = int("".join(map(str, digits)))
        if second != amount and second >= 100:
            yield amount, second
            given += 1
        if given == PAIRS:
            return


def draw(found: Scans, pool: int, amount: int, name: str) -> Image.Image:
    """An amount in digits of one pool, written unevenly on tinted paper with wavy lines."""
    u = hash_uniform(hash_key("draw", name), np.arange(32)).tolist()
    ink = Image.new("L", (WIDTH, HEIGHT))
    left = 1 + 10 * u[0]
    for digit in str(amount):
        scan, *shape, up, gap = u[-7:]
        u = u[:-7]
        choices = found.of(int(digit), pool)
        glyph = _glyph(found.ink[choices[int(len(choices) * scan)]], *shape)
        corner = (round(left), round((HEIGHT - GLYPH) / 2 + 6 * up - 3))
        ink.paste(255, corner, glyph)
        left += 28 + 7 * gap
    paper, colour = _paper(int(_PAPERS * u[1])), _INKS[int(len(_INKS) * u[2])]
    return Image.composite(Image.new("RGB", ink.size, colour), paper, ink)


def _glyph(ink: NDArray[np.uint8], turn: float, slant: float, wide: float, high: float) -> Image.Image:
    """A scan, 24 to 34 pixels large, turned by up to 8 degrees and slanted."""
    angle, skew = math.radians(16 * turn - 8), 0.4 * slant - 0.2
    across, along = 8 / (24 + 10 * wide), 8 / (26 + 8 * high)
    a, b = across * (math.cos(angle) - skew * math.sin(angle)), across * (math.sin(angle) + skew * math.cos(angle))
    c, d = -along * math.sin(angle), along * math.cos(angle)
    middle, half = ink.shape[0] / 2 + 1, GLYPH / 2
    matrix = (a, b, middle - (a + b) * half, c, d, middle - (c + d) * half)
    scan = Image.fromarray(np.pad(ink, 1))
    return scan.transform((GLYPH, GLYPH), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


@cache
def _paper(number: int) -> Image.Image:
    """Paper with two families of wavy lines, as banks print it against copying."""
    tint, wave, phase, gap = hash_uniform(hash_key("paper", number), np.arange(4)).tolist()
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    colour = np.array([(214, 232, 214), (210, 224, 240), (240, 230, 206)][number % 3]) + 12 * (tint - 0.5)
    lines = np.zeros((HEIGHT, WIDTH))
    for sign in (1, -1):
        lines += np.sin(
            2 * math.pi * (y + sign * (2 + 3 * wave) * np.sin(x / (6 + 8 * gap) + 6 * phase)) / (4 + 3 * gap)
        )
    return Image.fromarray(np.clip(colour - 8 * np.abs(lines)[..., None], 0, 255).astype(np.uint8))
