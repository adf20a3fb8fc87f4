"""Rows -> checked texts and numeric targets, split by group. Bad rows are named, or left out with a count."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import hash_key
from lmrecipes.data.sources import SPLITS, WHOLE, Rows
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Task

EXAMPLES_SHOWN = 3
"""Bad rows quoted in a message; the rest are counted."""
LARGEST = float(np.finfo(np.float32).max)


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


@dataclass
class _Chosen:
    """Good rows on their way into a split."""

    texts: list[str] = field(default_factory=list)
    pairs: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)


def build_task_data(name: str, task: Task, by_split: dict[str, Rows]) -> TaskData:
    """Check every row, turn labels into targets and cut the splits. Raises InputError with all problems found."""
    where = f"tasks.{name}.source"
    label_names = _label_names(task, by_split)
    reader = _LabelReader(task, label_names)
    to_cut = [split for split in SPLITS if split not in by_split]
    chosen = {split: _Chosen() for split in SPLITS}
    bad: list[str] = []
    skipped = 0
    for split, rows in by_split.items():
        for i in range(len(rows)):
            value, reason = _check(task, rows, i, reader)
            if reason is not None:
                skipped += 1
                if len(bad) < EXAMPLES_SHOWN:
                    bad.append(f"{rows.origin(i)}: {reason}")
                continue
            home = chosen[_split_of(task, rows, i, to_cut) if split in (WHOLE, "train") else split]
            home.texts.append(rows.texts[i])
            home.values.append(value)
            if rows.pairs is not None:
                home.pairs.append(rows.pairs[i])
    if bad and task.source.on_bad_row == "error":
        more = f"; and {skipped - len(bad)} more" if skipped > len(bad) else ""
        fix = f"repair them, or set {where}.on_bad_row to `skip` to leave them out with a count"
        raise InputError(Problem(where, f"{skipped} bad row(s): {'; '.join(bad)}{more}", fix, "bad-rows"))
    fewest = {"regression": 0, "classification": 2, "multi_label": 1}[task.kind]
    if len(label_names) < fewest:
        what = f"the rows have {len(label_names)} label(s) ({listing(label_names)}), {task.kind} needs {fewest} or more"
        raise InputError(Problem(f"{where}.label", what, "name another column, or another kind", "labels-too-few"))
    if empty := [split for split in SPLITS if not chosen[split].texts]:
        total = sum(len(rows) for rows in by_split.values())
        what = f"no rows in the split(s) {', '.join(empty)} ({total} rows were read, {skipped} of them bad)"
        fix = (
            "give more rows, a split file, or another validation_fraction / test_fraction; "
            "groups are never divided, so a source needs at least a few of them"
        )
        raise InputError(Problem(where, what, fix, "split-empty"))
    splits = {
        split: Examples(part.texts, part.pairs if task.source.text_pair else None, reader.targets(part.values))
        for split, part in chosen.items()
    }
    return TaskData(splits, label_names, skipped)


def _check(task: Task, rows: Rows, i: int, reader: _LabelReader) -> tuple[Any, str | None]:
    """(label value, None) of a good row, or (None, what is wrong)."""
    reason = _text_problem(rows.texts[i], task.source.text)
    if reason is None and rows.pairs is not None:
        reason = _text_problem(rows.pairs[i], task.source.text_pair or "text_pair")
    return (None, reason) if reason is not None else reader(rows.labels[i])


def _text_problem(text: Any, column: str) -> str | None:
    if not isinstance(text, str):
        return f"{column!r} is {_short(text)}, not a text"
    if not text or text.isspace():
        return f"{column!r} is empty"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"{column!r} holds half a surrogate pair, which is no character"
    return None


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _plain(value: Any) -> Any:
    """numpy arrays and scalars as Python lists and scalars; text without surrounding space."""
    if isinstance(value, str):
        return value.strip()
    return value.tolist() if hasattr(value, "tolist") else value


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _name(value: Any) -> str:
    """The name of a class given as text, integer, boolean or integral float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _several(value: Any, separator: str) -> list[Any] | None:
    """Labels of a multi_label cell (`_plain`): a list, or a string of separated names; None where it is neither."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None


def _label_names(task: Task, by_split: dict[str, Rows]) -> tuple[str, ...]:
    """The task's own labels, else those of all rows: in order of number where all are integers, else of name."""
    if task.kind == "regression":
        return ()
    if task.labels is not None:
        return task.labels
    names: set[str] = set()
    for rows in by_split.values():
        for label in rows.labels:
            value = _plain(label)
            cells = _several(value, task.source.label_separator) if task.kind == "multi_label" else [value]
            names.update(_name(cell) for cell in cells or () if not _missing(cell) and cell != "")
    if all(re.fullmatch("-?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


class _LabelReader:
    """A label cell -> (value, None) or (None, why it is bad)."""

    def __init__(self, task: Task, names: tuple[str, ...]) -> None:
        self.task, self.names = task, names
        self.index = {name: i for i, name in enumerate(names)}
        # A class may be given by its place in the recipe's labels, unless a name could be mistaken for a place.
        self.by_place = task.labels is not None and not any(name.isdecimal() for name in names)

    def __call__(self, cell: Any) -> tuple[Any, str | None]:
        label = _plain(cell)
        if _missing(label) or (label == "" and self.task.kind != "multi_label"):
            return None, f"label {self.task.source.label!r} is {'NaN' if isinstance(label, float) else 'missing'}"
        if self.task.kind == "regression":
            return self._number(label)
        if self.task.kind == "classification":
            return self._class(label)
        labels = _several(label, self.task.source.label_separator)
        if labels is None:
            return None, f"label {_short(label)} is neither a list nor separated names"
        return self._several_classes(labels)

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

    def _number(self, label: Any) -> tuple[float | None, str | None]:
        try:
            value = float(label)
        except (TypeError, ValueError, OverflowError):
            return None, f"label {_short(label)} is not a number"
        return (value, None) if abs(value) <= LARGEST else (None, f"label {_short(label)} is not finite in fp32")

    def _class(self, label: Any) -> tuple[int | None, str | None]:
        if isinstance(label, (list, tuple, set, frozenset, dict)):
            return None, f"label {_short(label)} is not one class"
        name = _name(label)
        if name in self.index:
            return self.index[name], None
        if self.by_place and name.isdecimal() and int(name) < len(self.names):
            return int(name), None
        near = did_you_mean(name, self.names)
        known = f"one of the {len(self.names)} labels ({listing(self.names, 5)})"
        return None, f"label {_short(label)} is not {known}.{near}"

    def _several_classes(self, labels: list[Any]) -> tuple[list[int] | None, str | None]:
        numbers = []
        for label in labels:
            if _missing(label) or label == "":
                return None, f"label {_short(labels)} holds a missing value"
            number, reason = self._class(label)
            if number is None:
                return None, reason
            numbers.append(number)
        if len(set(numbers)) < len(numbers) and not isinstance(labels[0], str):
            return (
                None,
                f"label {_short(labels)} repeats a number: a list names the labels that hold, it is no 0/1 vector",
            )
        return numbers, None


def _split_of(task: Task, rows: Rows, i: int, to_cut: list[str]) -> str:
    """The split of a row by a hash of its group; without one, of its text whatever the case and spacing."""
    group = None if rows.groups is None else _plain(rows.groups[i])
    if _missing(group) or group == "":
        group = "\x1f".join(" ".join(text.casefold().split()) for text in _texts(rows, i))
    u = hash_key("split", str(group)) / 2**64
    for split in ("test", "validation"):
        if split in to_cut:
            share = task.source.test_fraction if split == "test" else task.source.validation_fraction
            if u < share:
                return split
            u -= share
    return "train"


def _texts(rows: Rows, i: int) -> list[str]:
    return [rows.texts[i]] if rows.pairs is None else [rows.texts[i], rows.pairs[i]]
