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
from lmrecipes.data.media_cells import Read, lacks
from lmrecipes.data.targets import require_text
from lmrecipes.data.texts import tokenise
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


@dataclass
class _Cells:
    """The inputs of rows, checked: texts, in place of ids int32 arrays, and decoded images and clips; None: lacking."""

    texts: list[Any] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    media: dict[Modality, list[NDArray[Any] | None]] = field(default_factory=dict)


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
        self.readings = {
            name: Reading(Columns.of(task.source), task.max_length or recipe.model.longest)
            for name, task in recipe.tasks.items()
            if not task.of_tokens
        }
        texts = any(reading.columns.text is not None for reading in self.readings.values())
        self.tokenizer = load_tokenizer(str(model)) if texts else None

    def read(self, rows: Sequence[Row], reading: Reading) -> ReadRows:
        """The rows as examples. Raises RowsRefused."""
        columns, cells, bad = reading.columns, _Cells(), {}
        readers = {modality: self._reader(modality, columns) for modality in columns.media}
        for number, row in enumerate(rows):
            try:
                self._check(row, columns, readers, cells)
            except BadRow as reason:
                bad[number] = str(reason)
        if bad:
            raise RowsRefused(bad)
        return self._encoded(cells, reading)

    def _check(self, row: Row, columns: Columns, readers: Mapping[Modality, Read], cells: _Cells) -> None:
        """Add a row's inputs. Raises BadRow."""
        if columns.ids is not None:
            cells.texts.append(IdsRule(columns.ids, self.vocabulary, self.exactly)(_cell(row, columns.ids)))
            return
        several = len(readers) + (columns.text is not None) > 1
        found: dict[Modality, NDArray[Any] | None] = {}
        text = pair = None
        if columns.text is not None and not (several and lacks(row.get(columns.text))):
            text = _text(row, columns.text)
            pair = None if columns.text_pair is None else _text(row, columns.text_pair)
        for modality, read in readers.items():
            column = getattr(columns, modality)
            absent = several and lacks(row.get(column))
            found[modality] = None if absent else read(_cell(row, column), self.folder).values
        if text is None and all(values is None for values in found.values()):
            raise BadRow(f"it has none of {', '.join(map(repr, columns.named.values()))}")
        cells.texts.append(text)
        cells.pairs.append(pair or "")
        for modality, values in found.items():
            cells.media.setdefault(modality, []).append(values)

    def _reader(self, modality: Modality, columns: Columns) -> Read:
        """What reads the cells of a column of images or clips."""
        from lmrecipes.data.audio import AudioReader
        from lmrecipes.data.images import ImageReader

        reader: Any = ImageReader if modality == "image" else AudioReader
        found: Read = reader(getattr(columns, modality), self.inputs[modality])
        return found

    def _encoded(self, cells: _Cells, reading: Reading) -> ReadRows:
        """Tokens, and after them a place of id 0 for each position of an image or clip."""
        count, types = len(cells.texts), None
        if reading.columns.ids is not None:
            cut = [ids[: reading.max_length] for ids in cells.texts]
            tokens = np.concatenate(cut) if cut else np.zeros(0, np.int32)
            return _rows(tokens, np.fromiter(map(len, cut), np.int64, count), None, {})
        present = np.array([text is not None for text in cells.texts], bool)
        lengths, tokens = np.zeros(count, np.int64), np.zeros(0, np.int32)
        if present.any():
            texts = [text for text in cells.texts if text is not None]
            pairs = None
            if reading.columns.text_pair is not None:
                pairs = [pair for pair, there in zip(cells.pairs, present, strict=True) if there]
            found = tokenise(self.tokenizer, texts, pairs, reading.max_length)
            lengths[present], tokens, types = found.lengths, found.ids, found.types
            if len(empty := np.flatnonzero(present & (lengths == 0))):
                raise RowsRefused({int(number): "the tokenizer finds no token in it" for number in empty})
        if not cells.media:
            return _rows(tokens, lengths, types, {})
        media = {modality: _arrays(values, self.inputs[modality]) for modality, values in cells.media.items()}
        more = np.sum([arrays.positions_of(np.arange(count)) for arrays in media.values()], axis=0, dtype=np.int64)
        ends = np.cumsum(lengths)
        gaps = np.repeat(ends, more)
        types = None if types is None else np.insert(types, gaps, 0)
        return _rows(np.insert(tokens, gaps, 0), lengths + more, types, media)


def _cell(row: Row, column: str) -> Any:
    if column not in row:
        raise BadRow(f"it has no column {column!r}")
    return row[column]


def _text(row: Row, column: str) -> str:
    text = _cell(row, column)
    require_text(text, column)
    return str(text)


def _arrays(values: Sequence[NDArray[Any] | None], spec: Spec) -> MediaArrays:
    """Decoded images or clips, some of them lacking, end to end."""
    image = len(there := [v for v in values if v is not None]) > 0 and there[0].ndim == 3
    counts = [0 if v is None else 1 if image else len(v) for v in values]
    joined = (np.stack if image else np.concatenate)(there) if there else np.zeros(0, np.uint8)
    return MediaArrays(joined, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), spec)


def _rows(
    tokens: NDArray[Any], lengths: NDArray[np.int64], types: NDArray[np.uint8] | None,
    media: Mapping[Modality, MediaArrays],
) -> ReadRows:  # fmt: skip
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return ReadRows(tokens, offsets, types, np.zeros(len(lengths), np.int32), media)
