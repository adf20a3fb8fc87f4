"""Cheques: an amount in words beside a picture of the amount in real handwritten digits. Fraud is where they differ.

Two different amounts make four cheques: both texts with both pictures. So the texts of genuine and of fraudulent
cheques are the same amounts, and so are the pictures: neither alone says anything.

Amounts have one, two or three digits, equally often: a comparison of one digit is found soon, and carries over.
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
PAIRS = 3000
"""Pairs of amounts in `cheques`."""
READINGS = 9000
"""Rows of `cheque_amounts`."""
BOX = 32
"""Side of the box of one digit, in pixels."""
HEIGHT, WIDTH = BOX, BOX * len(PLACES)
"""Pixels of a picture."""
_INKS = ((18, 24, 66), (20, 20, 20), (24, 52, 120), (52, 18, 40))
_PAPERS = 32


def cheques(folder: Path) -> list[Row]:
    """Columns text, image, label (genuine or fraud). Group: the pool of the picture's scans. folder: scikit-learn's.

    In one half of the frauds all digits differ; in the other one has changed, or two are swapped.
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
    for number, amount in enumerate(_amounts("amounts", READINGS)):
        name, kind = f"amounts {number}", number // POOLS % 6
        text, picture, pool = phrased(amount, name), None, number % POOLS
        if kind == 0:
            pool = hash_key("words", text.casefold()) % POOLS
        else:
            picture = {"bytes": png(draw(found, pool, amount, name)), "path": None}
        label = [f"{PLACES[place]} {digit}" for place, digit in _placed(amount)]
        said = text if kind < 2 else None
        rows.append({"text": said, "image": picture, "label": label, "group": pool_name(pool)})
    return rows


def _uniform(purpose: str, count: int) -> NDArray[np.float64]:
    return hash_uniform(hash_key("cheques", purpose), np.arange(count))


def _amounts(purpose: str, count: int) -> list[int]:
    """From 2, as "one pounds" is nobody's phrase, to 999: as many of one digit as of two and of three."""
    lows, highs = np.array([2, 10, 100]), np.array([10, 100, 1000])
    kind = (3 * _uniform(f"{purpose}, digits", count)).astype(int)
    return (lows[kind] + ((highs - lows)[kind] * _uniform(purpose, count)).astype(int)).tolist()


def _placed(amount: int) -> Iterator[tuple[int, int]]:
    """Digits and their places, 0 being the hundreds."""
    digits = str(amount)
    return zip(range(len(PLACES) - len(digits), len(PLACES)), map(int, digits), strict=True)


def _pairs() -> Iterator[tuple[int, int]]:
    """Two amounts of as many digits that differ in all digits, in one, or by two that changed places."""
    kinds, changes, given = _uniform("kind", 2 * PAIRS), _uniform("change", 2 * PAIRS), 0
    for amount, kind, change in zip(_amounts("first", 2 * PAIRS), kinds.tolist(), changes.tolist(), strict=True):
        digits = [int(digit) for digit in str(amount)]
        place, by = divmod(int(9 * len(digits) * change), 9)
        if kind < 0.5:
            digits = [(digit + 1 + (by + 4 * at) % 9) % 10 for at, digit in enumerate(digits)]
        elif kind < 0.65:
            other = (place + 1) % len(digits)
            digits[place], digits[other] = digits[other], digits[place]
        else:
            digits[place] = (digits[place] + 1 + by) % 10
        second = int("".join(map(str, digits)))
        if second not in (amount, 0, 1) and digits[0]:
            yield amount, second
            given += 1
        if given == PAIRS:
            return


def draw(found: Scans, pool: int, amount: int, name: str) -> Image.Image:
    """An amount in digits of one pool, one in each box from the right, on tinted paper with wavy lines."""
    u = hash_uniform(hash_key("draw", name), np.arange(2 + 6 * len(PLACES))).tolist()
    ink = Image.new("L", (WIDTH, HEIGHT))
    for place, digit in _placed(amount):
        scan, turn, wide, high, across, down = u[2 + 6 * place :][:6]
        choices = found.of(digit, pool)
        glyph = _glyph(found.ink[choices[int(len(choices) * scan)]], turn, wide, high)
        ink.paste(glyph, (BOX * place + round(4 * across - 2), round(4 * down - 2)))
    paper, colour = _paper(int(_PAPERS * u[0])), _INKS[int(len(_INKS) * u[1])]
    return Image.composite(Image.new("RGB", ink.size, colour), paper, ink)


def _glyph(ink: NDArray[np.uint8], turn: float, wide: float, high: float) -> Image.Image:
    """A scan of 8 x 8 cells, 24 to 30 pixels large, turned by up to 6 degrees."""
    angle, across, along = math.radians(12 * turn - 6), 8 / (24 + 6 * wide), 8 / (24 + 6 * high)
    a, b = across * math.cos(angle), across * math.sin(angle)
    c, d = -along * math.sin(angle), along * math.cos(angle)
    middle, half = ink.shape[0] / 2 + 1, BOX / 2
    matrix = (a, b, middle - (a + b) * half, c, d, middle - (c + d) * half)
    scan = Image.fromarray(np.pad(ink, 1))
    return scan.transform((BOX, BOX), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


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
