"""Label cells -> numbers, classes or sets of classes. Classes that a recipe does not name are found as rows come."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.problems import did_you_mean, listing
from lmrecipes.recipe import Task

LARGEST = float(np.finfo(np.float32).max)


class LabelReader:
    """A label cell -> (value, None), or (None, why it is bad).

    Values: a float (regression), the number of a class (classification), a list of them (multi_label). A class that the
    recipe does not name gets the next number at its first good row; `final` says which number it has in the end.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.index = {name: i for i, name in enumerate(task.labels or ())}
        # A class may be given by its place in the recipe's labels, unless a name could be mistaken for a place.
        self.by_place = task.labels is not None and not any(name.isdecimal() for name in self.index)

    @property
    def names(self) -> tuple[str, ...]:
        """The recipe's labels, else those of the rows: in order of number where all are integers, else of name."""
        if self.task.labels is not None:
            return self.task.labels
        numbers = all(re.fullmatch("-?[0-9]+", name) for name in self.index)
        return tuple(sorted(self.index, key=int) if numbers else sorted(self.index))

    @property
    def final(self) -> NDArray[np.int32]:
        """Place in `names` of each number that was given out, [classes]."""
        places = {name: place for place, name in enumerate(self.names)}
        return np.array([places[name] for name in self.index], np.int32)

    def __call__(self, cell: Any) -> tuple[Any, str | None]:
        label = plain(cell)
        if missing(label) or (label == "" and self.task.kind != "multi_label"):
            return None, f"label {self.task.source.label!r} is {'NaN' if isinstance(label, float) else 'missing'}"
        if self.task.kind == "regression":
            return self._number(label)
        if self.task.kind == "classification":
            return self._class(label)
        labels = _several(label, self.task.source.label_separator)
        if labels is None:
            return None, f"label {short(label)} is neither a list nor separated names"
        known = len(self.index)
        numbers, reason = self._several_classes(labels)
        if reason is not None:
            while len(self.index) > known:  # a bad row names no class
                self.index.popitem()
        return numbers, reason

    def _number(self, label: Any) -> tuple[float | None, str | None]:
        try:
            value = float(label)
        except (TypeError, ValueError, OverflowError):
            return None, f"label {short(label)} is not a number"
        return (value, None) if abs(value) <= LARGEST else (None, f"label {short(label)} is not finite in fp32")

    def _class(self, label: Any) -> tuple[int | None, str | None]:
        if isinstance(label, (list, tuple, set, frozenset, dict)):
            return None, f"label {short(label)} is not one class"
        name = _name(label)
        if self.task.labels is None:
            return self.index.setdefault(name, len(self.index)), None
        if name in self.index:
            return self.index[name], None
        if self.by_place and name.isdecimal() and int(name) < len(self.index):
            return int(name), None
        near = did_you_mean(name, self.names)
        known = f"one of the {len(self.names)} labels ({listing(self.names, 5)})"
        return None, f"label {short(label)} is not {known}.{near}"

    def _several_classes(self, labels: list[Any]) -> tuple[list[int] | None, str | None]:
        numbers = []
        for label in labels:
            if missing(label) or label == "":
                return None, f"label {short(labels)} holds a missing value"
            number, reason = self._class(label)
            if number is None:
                return None, reason
            numbers.append(number)
        if len(set(numbers)) < len(numbers) and not isinstance(labels[0], str):
            rule = "a list names the labels that hold, it is no 0/1 vector"
            return None, f"label {short(labels)} repeats a number: {rule}"
        return numbers, None


def short(value: Any) -> str:
    """A value as a message quotes it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def plain(value: Any) -> Any:
    """numpy arrays and scalars as Python lists and scalars; text without surrounding space."""
    if isinstance(value, str):
        return value.strip()
    return value.tolist() if hasattr(value, "tolist") else value


def missing(value: Any) -> bool:
    """None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _name(value: Any) -> str:
    """The name of a class given as text, integer, boolean or integral float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _several(value: Any, separator: str) -> list[Any] | None:
    """Labels of a multi_label cell (`plain`): a list, or a string of separated names; None where it is neither."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    return list(value) if isinstance(value, (list, tuple, set, frozenset)) else None
