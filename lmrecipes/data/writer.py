"""The files of an encoded split, written piece by piece: memory does not grow with the number of rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.arrays import CHUNK, GrowingArray, change_in_place, load_mapped
from lmrecipes.data.targets import label_matrix
from lmrecipes.recipe import TaskKind


@dataclass(frozen=True)
class Tokenised:
    """Some texts as tokens: ids int32, end to end; lengths int64 [n]; types uint8 for pairs; how many were cut."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    types: NDArray[np.uint8] | None
    truncated: int


class SplitWriter:
    """`<split>.tokens.npy`, `.offsets.npy`, `.targets.npy` and, for pairs, `.types.npy` in `folder`."""

    def __init__(self, folder: Path, split: str, kind: TaskKind, paired: bool) -> None:
        def file(part: str) -> Path:
            return folder / f"{split}.{part}.npy"

        self._tokens = GrowingArray(file("tokens"), np.int32)
        self._offsets = GrowingArray(file("offsets"), np.int64)
        self._offsets.append(np.zeros(1, np.int64))
        self._types = GrowingArray(file("types"), np.uint8) if paired else None
        self._targets = _SetsWriter(file("targets")) if kind == "multi_label" else _ValuesWriter(file("targets"), kind)
        self._truncated = 0

    def append(self, texts: Tokenised, values: list[Any]) -> None:
        """Some texts and their label values, as `LabelReader` gives them."""
        self._offsets.append(self._tokens.rows + np.cumsum(texts.lengths))
        self._tokens.append(texts.ids)
        if self._types is not None and texts.types is not None:
            self._types.append(texts.types)
        self._targets.append(values)
        self._truncated += texts.truncated

    def close(self, final: NDArray[np.int32]) -> dict[str, int]:
        """Finish the files; `final` is `LabelReader.final`. Returns the split's counts, see `EncodedTask`."""
        for file in (self._tokens, self._offsets, self._types):
            if file is not None:
                file.close()
        self._targets.close(final)
        rows = self._offsets.rows - 1
        return {
            "rows": rows,
            "tokens": self._tokens.rows,
            "truncated": self._truncated,
            "supervised": rows,  # the label of a whole text counts as one token
            "masked": 0,
        }


class _ValuesWriter:
    """One number a row: float32 (regression) or the int32 number of a class, changed to its final one at the end."""

    def __init__(self, path: Path, kind: TaskKind) -> None:
        self._kind = kind
        self._values = GrowingArray(path, np.float32 if kind == "regression" else np.int32)

    def append(self, values: list[Any]) -> None:
        self._values.append(np.array(values, self._values.dtype))

    def close(self, final: NDArray[np.int32]) -> None:
        self._values.close()
        if self._kind == "classification" and (final != np.arange(len(final))).any():
            change_in_place(self._values.path, lambda numbers: final[numbers])


class _SetsWriter:
    """Any number of classes a row: kept as numbers end to end until all classes are known, then uint8 [n, labels]."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers = GrowingArray(path.with_suffix(".numbers"), np.int32)
        self._ends = GrowingArray(path.with_suffix(".ends"), np.int64)

    def append(self, values: list[list[int]]) -> None:
        self._ends.append(self._numbers.rows + np.cumsum([len(numbers) for numbers in values], dtype=np.int64))
        self._numbers.append(np.fromiter((n for numbers in values for n in numbers), np.int32))

    def close(self, final: NDArray[np.int32]) -> None:
        for part in (self._numbers, self._ends):
            part.close()
        numbers, ends = load_mapped(self._numbers.path), load_mapped(self._ends.path)
        matrix = GrowingArray(self._path, np.uint8, (len(final),))
        step = max(1, CHUNK // len(final))
        begin = 0
        for start in range(0, len(ends), step):
            part_ends = ends[start : start + step]
            counts = np.diff(part_ends, prepend=begin)
            matrix.append(label_matrix(numbers[begin : part_ends[-1]], counts, final))
            begin = int(part_ends[-1])
        matrix.close()
        for part in (self._numbers, self._ends):
            part.path.unlink()
