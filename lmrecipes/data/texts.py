"""Texts with a label -> tokens: one text, or a pair of them, for each row, cut at the model's length."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

from lmrecipes.data.targets import Piece
from lmrecipes.data.writer import Tokenised
from lmrecipes.problems import InputError, Problem

Tokenizer = Any


class TextEncoder:
    """Tokens of a block's rows. Counts texts in which the tokenizer finds none. where: the task's source."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, where: str) -> None:
        self.tokenizer, self.max_length, self.where = tokenizer, max_length, where
        self._tokenless: dict[str, tuple[int, str]] = {}

    def __call__(self, split: str, piece: Piece) -> Tokenised:
        """The rows of a split's piece, with their label values."""
        found = tokenise(self.tokenizer, piece.texts, piece.pairs, self.max_length)
        empty = np.flatnonzero(found.lengths == 0)
        if len(empty):
            first = piece.texts[empty[0]] + (f" {piece.pairs[empty[0]]}" if piece.pairs is not None else "")
            count, example = self._tokenless.get(split, (0, first))
            self._tokenless[split] = count + len(empty), example
        return found._replace(values=piece.values)

    def finish(self) -> dict[str, Any]:
        """After the last block: raises InputError where texts have no token. Returns what meta.json says more."""
        for split, (count, text) in self._tokenless.items():
            what = f"the tokenizer finds no token in {count} text(s) of the {split} split, such as {text!r}"
            raise InputError(Problem(f"{self.where}.text", what, "leave these rows out of the source", "text-no-token"))
        return {}


def tokenise(tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, max_length: int) -> Tokenised:
    """Tokens of some texts (or pairs of texts), each cut to `max_length`.

    The same ids as `tokenizer(texts, pairs, truncation=True, max_length=max_length)`, at half the cost for short texts:
    that call also makes Python lists of masks, and notes where in the text each token stands.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    encodings = backend.encode_batch_fast(texts if pairs is None else list(zip(texts, pairs, strict=True)))
    ids = [encoding.ids for encoding in encodings]
    types = None if pairs is None else chain.from_iterable(encoding.type_ids for encoding in encodings)
    return Tokenised(
        np.fromiter(chain.from_iterable(ids), np.int32),
        np.fromiter(map(len, ids), np.int64, len(ids)),
        types=None if types is None else np.fromiter(types, np.uint8),
        counts={"truncated": sum(bool(encoding.overflowing) for encoding in encodings)},
    )
