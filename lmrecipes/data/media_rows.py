"""Rows with images or clips -> positions, and the arrays that front ends read."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.inputs import ImageSpec, Spec, Specs
from lmrecipes.data.targets import Piece
from lmrecipes.data.writer import Tokenised

Values = NDArray[Any]


class Encoder(Protocol):
    """The rows of a kind of task -> tokens, block by block."""

    def __call__(self, split: str, piece: Piece) -> Tokenised: ...
    def finish(self) -> dict[str, Any]:
        """After the last block: raises InputError, or returns what meta.json says more."""
        ...


class MediaEncoder:
    """Each row's tokens, then a placeholder for each position of its image and its clip; and these themselves.

    texts: what makes tokens of the rows that have a text; None where the source names no text.
    """

    def __init__(self, texts: Encoder | None, specs: Specs) -> None:
        self.texts, self.specs = texts, specs

    def __call__(self, split: str, piece: Piece) -> Tokenised:
        """The rows of a split's piece, with their label values; counts rows without a text, an image or a clip."""
        media = {modality: joined(piece.media[modality], spec) for modality, spec in self.specs.items()}
        lengths = np.zeros(len(piece), np.int64)
        counts: dict[str, int] = {}
        written = [i for i, text in enumerate(piece.texts) if text is not None]
        tokens = None
        if self.texts is not None:
            counts["without_text"] = len(piece) - len(written)
            if len(written):
                tokens = self.texts(split, _rows_of(piece, written))
                lengths[written] = tokens.lengths
                counts |= tokens.counts
        of_text = lengths.copy()
        for modality, spec in self.specs.items():
            held = media[modality][1]
            lengths += held * spec.positions if isinstance(spec, ImageSpec) else spec.positions_held(held)
            if self.texts is not None or len(self.specs) > 1:
                counts[f"without_{modality}"] = int((held == 0).sum())
        ids = np.zeros(lengths.sum(), np.int32)
        types = None if piece.pairs is None else np.zeros(len(ids), np.uint8)
        if tokens is not None:
            starts = np.cumsum(lengths) - lengths
            within = np.arange(of_text.sum()) - np.repeat(np.cumsum(of_text) - of_text, of_text)
            places = np.repeat(starts, of_text) + within
            ids[places] = tokens.ids
            if types is not None and tokens.types is not None:
                types[places] = tokens.types
        return Tokenised(ids, lengths, types=types, values=piece.values, counts=counts, media=media)

    def finish(self) -> dict[str, Any]:
        """After the last block."""
        return {} if self.texts is None else self.texts.finish()


def _rows_of(piece: Piece, chosen: list[int]) -> Piece:
    """Some of a piece's texts."""
    pairs = None if piece.pairs is None else [piece.pairs[i] for i in chosen]
    return Piece([piece.texts[i] for i in chosen], pairs)


def joined(items: list[Values | None], spec: Spec) -> tuple[Values, NDArray[np.int64]]:
    """What `MediaArrays.values` holds of these examples, and how much of it is each one's (None: nothing), [n]."""
    if isinstance(spec, ImageSpec):
        empty = np.zeros((0, spec.height, spec.width, spec.channels), np.uint8)
        there = [item[None] for item in items if item is not None]
        held = [int(item is not None) for item in items]
    else:
        log_mel = spec.kind == "log_mel"
        empty = np.zeros((0, spec.mels), np.float16) if log_mel else np.zeros(0, np.int16)
        there = [item for item in items if item is not None]
        held = [0 if item is None else len(item) for item in items]
    return np.concatenate([empty, *there]), np.array(held, np.int64)
