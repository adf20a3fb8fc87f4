"""Rows -> encoded examples in memory, read as the run's own data was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.conversations import BadRow
from lmrecipes.data.ids import IdsRule
from lmrecipes.data.inputs import Spec
from lmrecipes.data.media import MediaArrays
from lmrecipes.data.media_cells import lacks
from lmrecipes.data.media_readers import MediaReaders
from lmrecipes.data.media_rows import MediaEncoder
from lmrecipes.data.targets import Piece, require_text
from lmrecipes.data.texts import TextEncoder
from lmrecipes.data.tokenizer import load_tokenizer
from lmrecipes.inference.row_predictor import Columns, Row, RowsRefused
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_inputs import Modality


class Reading(NamedTuple):
    """How the rows of a task become examples. Tasks with equal readings share them."""

    columns: Columns
    max_length: int


@dataclass(frozen=True)
class ReadRows:
    """Some rows as `Batcher` reads a split; there are no targets."""

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    types: NDArray[np.uint8] | None
    targets: NDArray[np.int32]
    media: Mapping[Modality, MediaArrays] = field(default_factory=dict)
    loss: None = None

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Positions of each example, [n]."""
        return np.diff(self.offsets)


class RowReader:
    """Reads rows for the tasks with labels of one exported model.

    inputs: what its front ends read. vocabulary: how many ids it knows. exactly: ids of every row, where it reads no
    other number. folder: see `open_predictor`.
    """

    def __init__(
        self, recipe: Recipe, model: Path, inputs: Mapping[Modality, Spec], vocabulary: int, exactly: int | None,
        folder: Path | None,
    ) -> None:  # fmt: skip
        self.inputs, self.vocabulary, self.exactly, self.folder = dict(inputs), vocabulary, exactly, folder
        self.readings: dict[str, Reading] = {}
        self.media: dict[Reading, MediaReaders] = {}
        for name, task in recipe.tasks.items():
            if not task.of_tokens:
                reading = Reading(Columns.of(task.source), task.max_length or recipe.model.longest)
                self.readings[name] = reading
                self.media[reading] = MediaReaders(task.source, self.inputs)
        texts = any(reading.columns.text is not None for reading in self.readings.values())
        self.tokenizer = load_tokenizer(str(model)) if texts else None

    def read(self, rows: Sequence[Row], reading: Reading) -> ReadRows:
        """The rows as examples. Raises RowsRefused."""
        columns, bad = reading.columns, dict[int, str]()
        piece = Piece(pairs=None if columns.text_pair is None else [], media={m: [] for m in columns.media})
        for number, row in enumerate(rows):
            try:
                self._add(piece, row, reading)
            except BadRow as reason:
                bad[number] = str(reason)
        if bad:
            raise RowsRefused(bad)
        if columns.ids is not None:
            cut = [ids[: reading.max_length] for ids in piece.texts]
            lengths = np.fromiter(map(len, cut), np.int64, len(cut))
            return ReadRows(np.concatenate([np.zeros(0, np.int32), *cut]), _ends(lengths), None, _no_targets(lengths))
        return self._encoded(piece, reading)

    def _add(self, piece: Piece, row: Row, reading: Reading) -> None:
        """A row's inputs; it may lack its text, or some of its media, but not all. Raises BadRow."""
        columns = reading.columns
        if columns.ids is not None:
            piece.texts.append(IdsRule(columns.ids, self.vocabulary, self.exactly)(_cell(row, columns.ids)))
            return
        media = self.media[reading]({m: row.get(getattr(columns, m)) for m in columns.media}, self.folder)
        if isinstance(media, BadRow):
            raise media
        of_text = [column for column in (columns.text, columns.text_pair) if column is not None]
        texts: list[str | None] = [None] * len(of_text)
        if of_text and not (columns.media and all(lacks(row.get(column)) for column in of_text)):
            texts = [_text(row, column) for column in of_text]
        elif not media:
            raise BadRow(f"it has none of {', '.join(map(repr, columns.named.values()))}")
        piece.texts.append(texts[0] if texts else None)
        if piece.pairs is not None:
            piece.pairs.append(texts[1] or "")
        for modality, items in piece.media.items():
            items.append(media[modality].values if modality in media else None)

    def _encoded(self, piece: Piece, reading: Reading) -> ReadRows:
        """As training encodes them. Raises RowsRefused for texts without a token."""
        texts = None
        if reading.columns.text is not None:
            texts = TextEncoder(self.tokenizer, reading.max_length, "")
        found = MediaEncoder(texts, {m: self.inputs[m] for m in reading.columns.media})("", piece)
        media = {m: MediaArrays(values, _ends(held), self.inputs[m]) for m, (values, held) in found.media.items()}
        rows, of_text = np.arange(len(piece)), found.lengths.copy()
        for arrays in media.values():
            of_text -= arrays.positions_of(rows)
        written = np.array([text is not None for text in piece.texts], bool)
        if len(empty := np.flatnonzero(written & (of_text == 0))):
            raise RowsRefused({int(number): "the tokenizer finds no token in it" for number in empty})
        return ReadRows(found.ids, _ends(found.lengths), found.types, _no_targets(found.lengths), media)


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise BadRow(f"it has no column {column!r}")
    return row[column]


def _text(row: Row, column: str) -> str:
    text = _cell(row, column)
    require_text(text, column)
    return str(text)


def _ends(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each begins, and where the last ends, [n + 1]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _no_targets(lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    return np.zeros(len(lengths), np.int32)
