"""Long texts in slices: what reads them needs memory for a slice only."""

from __future__ import annotations

from collections.abc import Iterator

SLICE = 2**20
"""Characters in a slice."""


def slices(text: str, most: int = SLICE) -> Iterator[str]:
    """Consecutive slices of a text, of at most `most` characters: together the text.

    Each but the last ends before the space that follows a word, where there is one: no tokenizer's pre-tokenisation
    reads across that place, so the tokens of the slices are those of the whole. Without such a place it is cut at
    `most`, which may change the tokens beside the cut.
    """
    start = 0
    while len(text) - start > most:
        cut = text.rfind(" ", start + 1, start + most)
        while cut > start and text[cut - 1].isspace():
            cut = text.rfind(" ", start + 1, cut)
        end = cut if cut > start else start + most
        yield text[start:end]
        start = end
    yield text[start:]
