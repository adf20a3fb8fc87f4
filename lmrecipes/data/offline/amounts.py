"""Amounts in English words, as people write them on cheques."""

from __future__ import annotations

from lmrecipes.data.offline.grouping import pick
from lmrecipes.data.permutation import hash_key

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SMALL = (
    *DIGITS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
FRAMES = (
    "{}", "{} only", "{} pounds", "{} pounds only", "the sum of {} pounds", "{} dollars", "{} and 00/100 dollars",
    "pay {}",
)  # fmt: skip
"""What stands around the words."""
_CASES = (str.lower, str.capitalize, str.title, str.upper)


def in_words(amount: int, joint: str = " and ", hyphen: str = "-") -> str:
    """742 -> seven hundred and forty-two. amount: 1 to 9,999. joint: before the last two digits; hyphen: after tens."""
    thousands, rest = divmod(amount, 1000)
    hundreds, rest = divmod(rest, 100)
    parts = [f"{_SMALL[thousands]} thousand"] if thousands else []
    parts += [f"{_SMALL[hundreds]} hundred"] if hundreds else []
    tens, units = divmod(rest, 10)
    if rest < len(_SMALL):
        last = _SMALL[rest] if rest else ""
    else:
        last = _TENS[tens] + (hyphen + _SMALL[units] if units else "")
    return " ".join(parts) + (joint if parts and last else "") + last


def phrased(amount: int, name: str) -> str:
    """An amount in words, in a phrasing that is chosen by hash of `name`: with or without "and", hyphen, currency."""
    joint = pick((" and ", " "), "joint", name)
    words = in_words(amount, joint, pick(("-", " "), "hyphen", name))
    framed = pick(FRAMES, "frame", name).format(words)
    return _CASES[hash_key("case", name) % len(_CASES)](framed)
