"""Rows -> checked texts and numeric targets, split by group. Bad rows are collected and named, never dropped silently."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import hash_key
from lmrecipes.data.sources import SPLITS, WHOLE, Rows
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Task

EXAMPLES_SHOWN = 3
"""Bad rows quoted in a message; the rest are counted."""


@dataclass(frozen=True)
class Examples:
    """One split of a task. targets: float32 [n] (regression), int32 [n] (classification), uint8 [n, labels]."""

    texts: list[str]
    pairs: list[str] | None
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def joined(self, i: int) -> str:
        """Text i, a pair joined by a space."""
        return self.texts[i] if self.pairs is None else f"{self.texts[i]} {self.pairs[i]}"

    def all_joined(self) -> list[str]:
        """Every text, for models that read one."""
        return [self.joined(i) for i in range(len(self))]


@dataclass(frozen=True)
class TaskData:
    """A task's splits, its label names (empty for regression) and how many bad rows were left out."""

    splits: dict[str, Examples]
    labels: tuple[str, ...]
    skipped: int


def build_task_data(name: str, task: Task, by_split: dict[str, Rows]) -> TaskData:
    """Check every row, turn labels into targets and cut the splits. Raises InputError with all problems found."""
    label_names = _label_names(task, by_split)
    reader = _LabelReader(task, label_names)
    bad: list[tuple[str, str]] = []
    kept: dict[str, tuple[list[int], list[Any]]] = {}
    for split, rows in by_split.items():
        good, values = [], []
        for i, (text, label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
            reason = _text_problem(text, task.source.text)
            if reason is None and rows.pairs is not None:
                reason = _text_problem(rows.pairs[i], task.source.text_pair or "text_pair")
            value = None
            if reason is None:
                value, reason = reader(label)
            if reason is not None:
                bad.append((rows.origin(i), reason))
            else:
                good.append(i)
                values.append(value)
        kept[split] = (good, values)
    where = f"tasks.{name}.source"
    if bad and task.source.on_bad_row == "error":
        raise InputError(_bad_row_problem(where, task, bad))
    splits = _cut(task, by_split, kept, reader)
    empty = [split for split in SPLITS if len(splits[split]) == 0]
    if empty:
        total = sum(len(rows) for rows in by_split.values())
        raise InputError(
            Problem(
                where,
                f"no rows in the split(s) {', '.join(empty)} ({total} rows were read, {len(bad)} of them bad)",
                "give more rows, a split file, or another validation_fraction / test_fraction; "
                "groups are never divided, so a source needs at least a few of them",
                "split-empty",
            )
        )
    return TaskData(splits, label_names, len(bad))


def _text_problem(text: Any, column: str) -> str | None:
    if isinstance(text, str) and text.strip():
        return None
    return f"{column!r} is {'empty' if isinstance(text, str) else repr(text)}, not a text"


def _bad_row_problem(where: str, task: Task, bad: list[tuple[str, str]]) -> Problem:
    shown = "; ".join(f"{origin}: {reason}" for origin, reason in bad[:EXAMPLES_SHOWN])
    more = f"; and {len(bad) - EXAMPLES_SHOWN} more" if len(bad) > EXAMPLES_SHOWN else ""
    return Problem(
        f"{where}.{task.source.label}" if "label" in bad[0][1] else where,
        f"{len(bad)} bad row(s): {shown}{more}",
        f"repair them, or set {where}.on_bad_row to `skip` to leave them out with a count",
        "bad-rows",
    )


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _name(value: Any) -> str:
    """The name of a class given as text, integer, boolean or integral float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _several(value: Any, separator: str) -> list[str] | None:
    """Label names of a multi_label cell: a list, or a string of separated names; None where it is neither."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist"):
        return [_name(v) for v in value]
    return None


def _label_names(task: Task, by_split: dict[str, Rows]) -> tuple[str, ...]:
    if task.kind == "regression":
        return ()
    if task.labels is not None:
        return task.labels
    names: set[str] = set()
    for rows in by_split.values():
        for value in rows.labels:
            if task.kind == "multi_label":
                names.update(_several(value, task.source.label_separator) or ())
            elif not _missing(value):
                names.add(_name(value))
    if all(name.lstrip("-").isdigit() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


class _LabelReader:
    """A label cell -> (value, None) or (None, why it is bad)."""

    def __init__(self, task: Task, names: tuple[str, ...]) -> None:
        self.task, self.names = task, names
        self.index = {name: i for i, name in enumerate(names)}

    def __call__(self, label: Any) -> tuple[Any, str | None]:
        if _missing(label):
            return None, f"label {self.task.source.label!r} is {'missing' if label is None else 'NaN'}"
        if self.task.kind == "regression":
            try:
                value = float(label)
            except (TypeError, ValueError):
                return None, f"label {label!r} is not a number"
            return (value, None) if math.isfinite(value) else (None, f"label {label!r} is not finite")
        if self.task.kind == "classification":
            number = self._class(label)
            return (number, None) if number is not None else (None, self._out_of_range(label))
        names = _several(label, self.task.source.label_separator)
        if names is None:
            return None, f"label {label!r} is neither a list nor separated names"
        numbers = [self._class(name) for name in names]
        for name, number in zip(names, numbers, strict=True):
            if number is None:
                return None, self._out_of_range(name)
        return numbers, None

    def targets(self, values: list[Any]) -> NDArray[Any]:
        """Values of good rows as one array."""
        if self.task.kind == "regression":
            return np.array(values, np.float32)
        if self.task.kind == "classification":
            return np.array(values, np.int32)
        matrix = np.zeros((len(values), len(self.names)), np.uint8)
        for i, numbers in enumerate(values):
            matrix[i, numbers] = 1
        return matrix

    def _class(self, label: Any) -> int | None:
        name = _name(label)
        if name in self.index:
            return self.index[name]
        if self.task.labels is not None and name.isdigit() and int(name) < len(self.names):
            return int(name)
        return None

    def _out_of_range(self, label: Any) -> str:
        near = did_you_mean(_name(label), self.names)
        return f"label {label!r} is not one of the {len(self.names)} labels ({listing(self.names, 5)}).{near}"


def _cut(
    task: Task, by_split: dict[str, Rows], kept: dict[str, tuple[list[int], list[Any]]], reader: _LabelReader
) -> dict[str, Examples]:
    """Give every row its split: the source's own, or by a hash of its group."""
    chosen: dict[str, list[tuple[Rows, int, Any]]] = {split: [] for split in SPLITS}
    to_cut = [split for split in SPLITS[1:] if split not in by_split]
    for split, rows in by_split.items():
        good, values = kept[split]
        for i, value in zip(good, values, strict=True):
            home = _split_of(task, rows, i, to_cut) if split in (WHOLE, "train") else split
            chosen[home].append((rows, i, value))
    return {
        split: Examples(
            texts=[rows.texts[i] for rows, i, _ in members],
            pairs=[rows.pairs[i] for rows, i, _ in members if rows.pairs is not None]
            if task.source.text_pair
            else None,
            targets=reader.targets([value for _, _, value in members]),
        )
        for split, members in chosen.items()
    }


def _split_of(task: Task, rows: Rows, i: int, to_cut: list[str]) -> str:
    group = rows.groups[i] if rows.groups is not None else f"{rows.texts[i]}\x1f{rows.pairs[i] if rows.pairs else ''}"
    u = hash_key("split", str(group)) / 2**64
    for split in reversed(to_cut):
        share = task.source.test_fraction if split == "test" else task.source.validation_fraction
        if u < share:
            return split
        u -= share
    return "train"
