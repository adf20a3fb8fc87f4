"""Encoded examples as they are read: arrays in mapped memory. A split may be larger than the machine's memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.arrays import load_mapped
from lmrecipes.data.inputs import Specs
from lmrecipes.data.media import MediaArrays
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.recipe import Task
from lmrecipes.recipe_inputs import Modality

SAMPLED_AT_ONCE = 2**20
"""Rows whose hashes are in memory at once while a sample is drawn."""


@dataclass(frozen=True)
class EncodedSplit:
    """One split of one task, memory-mapped."""

    folder: Path
    split: str
    inputs: Specs = field(default_factory=dict)
    """How the media of its rows were read."""

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """All token ids, end to end."""
        return self._load("tokens")

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """[n + 1]: text i is tokens[offsets[i]:offsets[i + 1]]."""
        return self._load("offsets")

    @cached_property
    def targets(self) -> NDArray[Any]:
        """float32 [n], int32 [n] or uint8 [n, labels]; for kinds whose loss is of tokens int32 [n]: UTF-8 bytes of what
        a text's predicted tokens stand for."""
        return self._load("targets")

    @cached_property
    def loss(self) -> NDArray[np.uint8] | None:
        """1 for each token that is predicted, which the first of a text never is. None: all but those are."""
        return self._load("loss") if self._has("loss") else None

    @cached_property
    def types(self) -> NDArray[np.uint8] | None:
        """Segment of each token, for text pairs."""
        return self._load("types") if self._has("types") else None

    @cached_property
    def groups(self) -> NDArray[np.uint64] | None:
        """[n]: rows with the same number belong together (`source.group`). None: each stands for itself, or the split
        is that of training."""
        return self._load("groups") if self._has("groups") else None

    @cached_property
    def media(self) -> dict[Modality, MediaArrays]:
        """Images and clips. A row's positions are its text's, then its image's, then its clip's; the token of the last
        two is 0."""
        return {
            modality: MediaArrays(self._load(modality), self._load(f"{modality}_rows"), spec)
            for modality, spec in self.inputs.items()
        }

    @cached_property
    def _supervised(self) -> NDArray[np.int32] | None:
        return self._load("supervised") if self._has("supervised") else None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text, [n], made anew in memory: for small splits. Training asks for `lengths_of` its rows."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of these texts, [k]."""
        return self.offsets[rows + 1] - self.offsets[rows]

    def supervised_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of these texts that carry loss, [k]: one, where the label is of the whole text."""
        return np.ones(len(rows), np.int64) if self._supervised is None else self._supervised[rows].astype(np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, most: int | None, purpose: str) -> NDArray[np.int64]:
        """Row numbers in order: all, or the `most` of smallest hash; the same rows for every recipe and seed."""
        if most is None or most >= len(self):
            return np.arange(len(self), dtype=np.int64)
        key = hash_key(purpose, self.split)
        chosen, smallest = np.zeros(0, np.int64), np.zeros(0, np.float64)
        for start in range(0, len(self), SAMPLED_AT_ONCE):
            rows = np.arange(start, min(start + SAMPLED_AT_ONCE, len(self)), dtype=np.int64)
            hashes = hash_uniform(key, rows)
            if len(chosen) == most:
                hopeful = hashes < smallest[-1]
                rows, hashes = rows[hopeful], hashes[hopeful]
            rows, hashes = np.concatenate([chosen, rows]), np.concatenate([smallest, hashes])
            order = np.argsort(hashes, kind="stable")[:most]  # of equal hashes, the earlier row
            chosen, smallest = rows[order], hashes[order]
        return np.sort(chosen)

    def _has(self, part: str) -> bool:
        return self._path(part).exists()

    def _load(self, part: str) -> NDArray[Any]:
        return load_mapped(self._path(part))

    def _path(self, part: str) -> Path:
        return self.folder / f"{self.split}.{part}.npy"


@dataclass(frozen=True)
class EncodedTask:
    """A task ready to be trained on.

    skipped: bad rows left out. counts[split]: rows, tokens, truncated (rows), supervised (tokens that carry loss),
    masked (rows left out because `max_length` would cut all of these off), for language modelling documents, and where
    rows may hold several inputs without_text, without_image, without_audio (rows).
    duplicates: `{"train/test": rows of test whose text stands in train too, ...}`. unigram: for kinds whose loss is of
    tokens, the entropy in nats of the training split's predicted tokens: the loss of the best constant prediction.
    masked_places: where the first masked rows stand.
    """

    name: str
    task: Task
    labels: tuple[str, ...]
    skipped: int
    counts: dict[str, dict[str, int]]
    duplicates: dict[str, int]
    splits: dict[str, EncodedSplit]
    unigram: float | None = None
    masked_places: tuple[str, ...] = ()

    @property
    def train(self) -> EncodedSplit:
        """The training split."""
        return self.splits["train"]
