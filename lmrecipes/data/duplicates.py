"""Rows whose text stands in more than one split: what a test score owes to memory. Counted by 64-bit hashes on disk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.arrays import CHUNK, GrowingArray, load_mapped
from lmrecipes.data.permutation import hash_key
from lmrecipes.data.slices import slices
from lmrecipes.problems import Problem
from lmrecipes.recipe import Task

Keys = NDArray[np.uint64]


def text_key(texts: Sequence[str]) -> int:
    """64-bit hash of a row's text (and its pair), the same whatever the case and spacing.

    With 2e7 different texts, two of them get the same key with probability 1e-5.
    """
    return hash_key("split", "\x1f".join(map(_normal, texts)))


def _normal(text: str) -> str:
    parts = (" ".join(part.casefold().split()) for part in slices(text))
    return " ".join(part for part in parts if part)


class DuplicateCounter:
    """Collects the keys of all rows by split in files below `folder`, then counts those that splits share."""

    def __init__(self, folder: Path, splits: Iterable[str]) -> None:
        self._files = {split: GrowingArray(folder / f"{split}.keys.npy", np.uint64) for split in splits}

    def add(self, split: str, keys: list[int]) -> None:
        """The `text_key` of rows of a split."""
        self._files[split].append(np.array(keys, np.uint64))

    def count(self) -> dict[str, int]:
        """`shared_rows` of what was added; removes the files."""
        for file in self._files.values():
            file.close()
        found = shared_rows({split: load_mapped(file.path) for split, file in self._files.items()})
        for file in self._files.values():
            file.path.unlink()
        return found


def shared_rows(keys: Mapping[str, Keys]) -> dict[str, int]:
    """`{"train/test": rows of test whose key stands in train, ...}` for each pair of splits, in their order.

    keys: uint64 [rows] of each split. Works through ranges of keys that hold about CHUNK of them, as keys are hashes
    and so spread evenly: memory does not grow with the rows.
    """
    bits = max(0, (sum(map(len, keys.values())) // CHUNK).bit_length())
    found = {f"{first}/{second}": 0 for first, second in combinations(keys, 2)}
    for number in range(1 << bits):
        part = {split: _in_range(every, number, bits) for split, every in keys.items()}
        for first, second in combinations(keys, 2):
            found[f"{first}/{second}"] += int(np.isin(part[second], part[first]).sum())
    return found


def _in_range(keys: Keys, number: int, bits: int) -> Keys:
    """The keys whose first `bits` bits are `number`."""
    if bits == 0:
        return keys
    found = [np.zeros(0, np.uint64)]
    for start in range(0, len(keys), CHUNK):
        chunk = keys[start : start + CHUNK]
        found.append(chunk[chunk >> np.uint64(64 - bits) == number])
    return np.concatenate(found)


class Counted(Protocol):
    """What is known of a task's rows: `EncodedTask`, or the result of a check.

    counts[split]["rows"], and ["documents"] where a row of the source is cut into several.
    """

    @property
    def task(self) -> Task: ...
    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]: ...
    @property
    def duplicates(self) -> Mapping[str, int]: ...


def duplicate_warnings(tasks: Mapping[str, Counted]) -> list[Problem]:
    """A warning for each task with rows whose text stands in more than one split."""
    problems = []
    for name, task in tasks.items():
        shared = []
        for pair, rows in task.duplicates.items():
            first, second = pair.split("/")
            if rows:
                of_all = task.counts[second].get("documents", task.counts[second]["rows"])
                shared.append(f"{rows:,} of {of_all:,} rows of {second} ({rows / of_all:.1%}) stand in {first} too")
        if shared:
            where = f"tasks.{name}.source"
            what = f"{'; '.join(shared)} (same text but for case and spacing)"
            problems.append(Problem(where, what, _fix(task.task, where), "duplicate-rows", "warning"))
    return problems


def _fix(task: Task, where: str) -> str:
    if task.source.group is not None:
        return f"give rows of the same text the same value in the column {task.source.group!r} ({where}.group)"
    return (
        "leave them out of one split, or give all rows as one source, which is split so that the same text, "
        f"or the same value of the column {where}.group, is never in two splits"
    )
