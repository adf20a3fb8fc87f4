"""The files of an encoded split, written piece by piece: memory does not grow with the number of rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.arrays import CHUNK, GrowingArray, change_in_place, load_mapped
from lmrecipes.data.inputs import ImageSpec, Spec, Specs
from lmrecipes.data.targets import label_matrix
from lmrecipes.recipe import TOKEN_KINDS, TaskKind
from lmrecipes.recipe_inputs import Modality


class Tokenised(NamedTuple):
    """Some texts as tokens.

    ids: int32, end to end. lengths: int64 [n]. types: uint8, the segment of each token, for pairs. loss: uint8, 1 where
    a token is predicted, for chat. values: a label's value as `LabelReader` gives it, or the bytes that a text's
    predicted tokens stand for. counts: what more is counted of these rows, see `EncodedTask`. media: images or clips
    as `MediaArrays.values`, and how much of them is each text's, int64 [n].
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    types: NDArray[np.uint8] | None = None
    loss: NDArray[np.uint8] | None = None
    values: Sequence[Any] = ()
    counts: Mapping[str, int] = {}
    media: Mapping[Modality, tuple[NDArray[Any], NDArray[np.int64]]] = {}


class SplitWriter:
    """`<split>.tokens.npy`, `.offsets.npy`, `.targets.npy` in `folder`; for pairs `.types.npy`; for kinds whose loss
    is of tokens `.supervised.npy`, and for chat `.loss.npy`; for media `.image.npy` and `.image_rows.npy`, or
    `.audio.npy` and `.audio_rows.npy`; where rows come in groups `.groups.npy`."""

    def __init__(
        self, folder: Path, split: str, kind: TaskKind, paired: bool, inputs: Specs, grouped: bool = False
    ) -> None:
        def file(part: str) -> Path:
            return folder / f"{split}.{part}.npy"

        self._tokens = GrowingArray(file("tokens"), np.int32)
        self._offsets = GrowingArray(file("offsets"), np.int64)
        self._offsets.append(np.zeros(1, np.int64))
        self._types = GrowingArray(file("types"), np.uint8) if paired else None
        self._loss = GrowingArray(file("loss"), np.uint8) if kind == "chat" else None
        self._supervised = GrowingArray(file("supervised"), np.int32) if kind in TOKEN_KINDS else None
        self._groups = GrowingArray(file("groups"), np.uint64) if grouped else None
        self._targets = _SetsWriter(file("targets")) if kind == "multi_label" else _ValuesWriter(file("targets"), kind)
        self._media = {modality: _MediaWriter(file, modality, spec) for modality, spec in inputs.items()}
        self._counts = Counter(truncated=0, masked=0, supervised=0)
        self._predicted = Histogram()

    def append(self, texts: Tokenised, groups: Sequence[int] = ()) -> None:
        """Some texts, and of each a hash of its group."""
        if self._supervised is not None and len(texts.lengths):
            firsts = np.cumsum(texts.lengths) - texts.lengths
            predicted = np.ones(len(texts.ids), bool) if texts.loss is None else texts.loss > 0
            predicted[firsts] = False
            supervised = np.add.reduceat(predicted, firsts, dtype=np.int32)
            self._supervised.append(supervised)
            self._counts["supervised"] += int(supervised.sum())
            self._predicted.add(texts.ids[predicted])
        self._offsets.append(self._tokens.rows + np.cumsum(texts.lengths))
        self._tokens.append(texts.ids)
        for file, part in ((self._types, texts.types), (self._loss, texts.loss)):
            if file is not None and part is not None:
                file.append(part)
        if self._groups is not None:
            self._groups.append(np.array(groups, np.uint64))
        for modality, writer in self._media.items():
            writer.append(*texts.media[modality])
        self._targets.append(texts.values)
        self._counts.update(texts.counts)

    def close(self, final: NDArray[np.int32]) -> dict[str, int]:
        """Finish the files; `final` is `LabelReader.final`. Returns the split's counts, see `EncodedTask`."""
        for file in (self._tokens, self._offsets, self._types, self._loss, self._supervised, self._groups):
            if file is not None:
                file.close()
        for writer in self._media.values():
            writer.close()
        self._targets.close(final)
        rows = self._offsets.rows - 1
        if self._supervised is None:
            self._counts["supervised"] = rows  # the label of a whole text counts as one token
        return {"rows": rows, "tokens": self._tokens.rows, **self._counts}

    @property
    def unigram(self) -> float | None:
        """Entropy of the predicted tokens, see `EncodedTask`; None for labels of whole texts."""
        return None if self._supervised is None else self._predicted.entropy


class _MediaWriter:
    """Images or clips end to end, and where each row's are."""

    def __init__(self, file: Callable[[str], Path], modality: Modality, spec: Spec) -> None:
        if isinstance(spec, ImageSpec):
            width: tuple[int, ...] = (spec.height, spec.width, spec.channels)
            self._values = GrowingArray(file(modality), np.uint8, width)
        elif spec.kind == "log_mel":
            self._values = GrowingArray(file(modality), np.float16, (spec.mels,))
        else:
            self._values = GrowingArray(file(modality), np.int16)
        self._rows = GrowingArray(file(f"{modality}_rows"), np.int64)
        self._rows.append(np.zeros(1, np.int64))

    def append(self, values: NDArray[Any], held: NDArray[np.int64]) -> None:
        self._rows.append(self._values.rows + np.cumsum(held))
        self._values.append(values)

    def close(self) -> None:
        self._values.close()
        self._rows.close()


class Histogram:
    """How often each of some small numbers came."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, np.int64)

    def add(self, numbers: NDArray[Any]) -> None:
        """Some numbers, from 0."""
        more = np.bincount(numbers, minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        self.counts = more

    @property
    def entropy(self) -> float:
        """In nats."""
        shares = self.counts[self.counts > 0] / max(1, self.counts.sum())
        return math.fsum(-shares * np.log(shares))

    def quantiles(self, parts: int) -> list[int]:
        """The smallest number that k / parts of all are at most, for k = 0 .. parts; empty where there are none."""
        up_to = np.cumsum(self.counts)
        if not len(up_to):
            return []
        wanted = np.maximum(1, -(-up_to[-1] * np.arange(parts + 1) // parts))
        return np.searchsorted(up_to, wanted).tolist()


class _ValuesWriter:
    """One number a row: float32 (regression), the int32 number of a class, changed to its final one at the end, or
    int32 bytes."""

    def __init__(self, path: Path, kind: TaskKind) -> None:
        self._kind = kind
        self._values = GrowingArray(path, np.float32 if kind == "regression" else np.int32)

    def append(self, values: Sequence[Any]) -> None:
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

    def append(self, values: Sequence[list[int]]) -> None:
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
