"""Ready token ids -> tokens: rows that another tokenizer, or no tokenizer at all, has made (`source.ids`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.conversations import BadRow
from lmrecipes.data.labels import missing, short
from lmrecipes.data.targets import Piece
from lmrecipes.data.writer import Tokenised
from lmrecipes.recipe import Recipe

Ids = NDArray[np.int32]
Tokenizer = Any


@dataclass(frozen=True)
class IdsRule:
    """What a row's ids must be. vocabulary: how many the model knows, None where that is not known. exactly: how many a
    row has, where the model reads no other number. fewest: how many at least."""

    column: str
    vocabulary: int | None = None
    exactly: int | None = None
    fewest: int = 1

    def __call__(self, cell: Any) -> Ids:
        """A cell's ids. Raises BadRow."""
        if missing(cell):
            raise BadRow(f"{self.column!r} is missing")
        try:
            ids = np.asarray(cell)
        except ValueError:  # lists of different lengths
            ids = np.zeros((0, 0), object)
        if ids.shape == (0,) or (ids.ndim == 1 and len(ids) < self.fewest):
            found = f"holds {len(ids)} id(s), the loss needs {self.fewest} or more" if len(ids) else "is empty"
            raise BadRow(f"{self.column!r} {found}")
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise BadRow(f"{self.column!r} is {short(cell)}, not a list of integers")
        if self.exactly is not None and len(ids) != self.exactly:
            raise BadRow(f"{self.column!r} holds {len(ids)} values, the model reads exactly {self.exactly}")
        most = np.iinfo(np.int32).max if self.vocabulary is None else self.vocabulary - 1
        if ids.min() < 0 or ids.max() > most:
            first = ids[(ids < 0) | (ids > most)][0]
            raise BadRow(f"{self.column!r} holds {first}, ids of this model run from 0 to {most}")
        return ids.astype(np.int32)


def ids_rule(recipe: Recipe, name: str, vocabulary: int | None) -> IdsRule | None:
    """The rule of a task's ids; None for a task of texts. vocabulary: of a model of `transformers`."""
    task, mlp = recipe.tasks[name], recipe.model.mlp
    if task.source.ids is None:
        return None
    if mlp.hidden:
        return IdsRule(task.source.ids, mlp.levels, mlp.inputs)
    return IdsRule(task.source.ids, vocabulary, fewest=2 if task.of_tokens else 1)


class IdsEncoder:
    """Rows with a label: each one's ids, cut at the model's length."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length

    def __call__(self, split: str, piece: Piece) -> Tokenised:
        """The rows of a split's piece, with their label values."""
        cut = [ids[: self.max_length] for ids in piece.texts]
        truncated = sum(len(ids) > self.max_length for ids in piece.texts)
        return _joined(cut, piece.values, {"truncated": truncated})

    def finish(self) -> dict[str, Any]:
        """After the last block."""
        return {}


class IdsDocumentEncoder:
    """Documents for language modelling: texts of at most `max_length` ids follow each other, each from the last id of
    the one before on. Nothing is added: what begins and ends a document is among its ids already."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.stride = tokenizer, max_length - 1

    def __call__(self, split: str, piece: Piece) -> Tokenised:
        """The texts of a split's piece, with the bytes that each one's predicted ids stand for."""
        cut = [
            ids[first : first + self.stride + 1] for ids in piece.texts for first in range(0, len(ids) - 1, self.stride)
        ]
        backend = self.tokenizer.backend_tokenizer
        said = backend.decode_batch([text[1:].tolist() for text in cut], skip_special_tokens=True)
        return _joined(cut, [len(text.encode()) for text in said], {"documents": len(piece)})

    def finish(self) -> dict[str, Any]:
        """After the last block."""
        return {}


def _joined(texts: list[Ids], values: Sequence[Any], counts: dict[str, int]) -> Tokenised:
    ids = np.concatenate(texts) if texts else np.zeros(0, np.int32)
    return Tokenised(ids, np.fromiter(map(len, texts), np.int64, len(texts)), values=values, counts=counts)
