"""`plan.jsonl`: every change that a run made of its weights and loss factors, one JSON object a line, oldest first.

    {"kind": "weights", "step": 40, "start": 3072, "weights": {"a": 6095, "b": 3867}, "method": "odm"}
    {"kind": "loss_factors", "step": 40, "from_step": 41, "factors": {"a": 1.08, "b": 0.916}, "method": "famo"}
`step` is the number of steps that were done when the change was decided. Weights hold from global sample index `start`
on, factors from the step numbered `from_step` (the first one is 1) on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lmrecipes.files import json_text, write_text_atomically
from lmrecipes.problems import InputError, Problem, did_you_mean, listing


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """From global sample index `start` on the tasks are drawn by these integer weights."""

    kind: str = "weights"
    step: int
    start: int
    weights: dict[str, int]
    method: str

    @property
    def begins(self) -> int:
        """`start`."""
        return self.start


@dataclass(frozen=True, kw_only=True)
class FactorsEntry:
    """From step number `from_step` on the tasks' losses are multiplied by these factors."""

    kind: str = "loss_factors"
    step: int
    from_step: int
    factors: dict[str, float]
    method: str

    @property
    def begins(self) -> int:
        """`from_step`."""
        return self.from_step


Entry = WeightsEntry | FactorsEntry
KINDS: dict[str, type[WeightsEntry] | type[FactorsEntry]] = {"weights": WeightsEntry, "loss_factors": FactorsEntry}
_FIELDS = {kind: tuple(made.__dataclass_fields__) for kind, made in KINDS.items()}


def as_row(entry: Entry) -> dict[str, Any]:
    """The entry as it is written."""
    return asdict(entry)


def from_row(row: dict[str, Any]) -> Entry:
    """Inverse of `as_row`, for rows that are known to be right."""
    return KINDS[row["kind"]](**row)


class PlanFile:
    """Append-only writer. The file starts with `entries`: none, or on resume those of the checkpoint."""

    def __init__(self, path: Path, entries: Sequence[Entry]) -> None:
        write_text_atomically(path, "".join(f"{json_text(as_row(entry))}\n" for entry in entries))
        self._written = len(entries)
        self._file = path.open("a", encoding="utf-8", newline="\n")

    def extend(self, entries: Sequence[Entry]) -> None:
        """Append what `entries`, the whole plan so far, has more than was written, and flush it."""
        for entry in entries[self._written :]:
            self._file.write(json_text(as_row(entry)) + "\n")
            self._file.flush()
        self._written = len(entries)

    def close(self) -> None:
        """Closing twice is fine."""
        self._file.close()


def read_plan(path: Path, tasks: Sequence[str], examples: int) -> list[Entry]:
    """The entries of an earlier run's plan, for a recipe with these tasks and so many examples per step.

    Raises InputError, with every line that cannot be followed, each with what is wrong and what to do.
    """

    def problem(where: str, what: str, fix: str) -> Problem:
        return Problem(f"mixture.replay: {path}{where}", what, fix, "replay-plan")

    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        why = error.strerror or str(error)
        raise InputError(problem("", f"cannot be read ({why})", "name the plan.jsonl of a run's folder")) from error
    entries: list[Entry] = []
    problems: list[Problem] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = _entry(line)
            _fit(entry, entries, tasks, examples)
            entries.append(entry)
        except _Unusable as error:
            problems.append(problem(f": line {number}", str(error), error.fix))
    if problems:
        raise InputError(problems)
    return entries


class _Unusable(Exception):
    """Why a line cannot be followed, and what to do about it."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


_RESTORE = "restore the file as the run wrote it, or delete this line and all after it"


def _entry(line: bytes) -> Entry:
    """The entry that a line holds, with fields and values as `plan.jsonl` has them."""
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise _Unusable(f"is not JSON ({error})", _RESTORE) from error
    kind = row.get("kind") if isinstance(row, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise _Unusable(f"kind is {kind!r}, not one of {', '.join(KINDS)}", _RESTORE)
    if set(row) != set(_FIELDS[kind]):
        raise _Unusable(f"a line of kind {kind} has {', '.join(_FIELDS[kind])}, found {', '.join(row)}", _RESTORE)
    place, values = ("start", "weights") if kind == "weights" else ("from_step", "factors")
    for name in ("step", place):
        if type(row[name]) is not int or row[name] < 0:
            raise _Unusable(f"{name} is {row[name]!r}, not a whole number", _RESTORE)
    if not isinstance(row[values], dict) or not isinstance(row["method"], str):
        raise _Unusable(f"{values} must be an object and method a name", _RESTORE)
    for task, value in row[values].items():
        if kind == "weights" and (type(value) is not int or value < 0):
            raise _Unusable(f"the weight of {task} is {value!r}, not a whole number", _RESTORE)
        if kind == "loss_factors" and not (type(value) in (int, float) and math.isfinite(value) and value >= 0):
            raise _Unusable(f"the factor of {task} is {value!r}, not a number of at least 0", _RESTORE)
    if kind == "weights" and not any(row[values].values()):
        raise _Unusable("every weight is 0", _RESTORE)
    return from_row(row)


def _fit(entry: Entry, before: Sequence[Entry], tasks: Sequence[str], examples: int) -> None:
    """Raise _Unusable where the entry does not fit the recipe or the entries before it."""
    named = entry.weights if isinstance(entry, WeightsEntry) else entry.factors
    unknown = [task for task in named if task not in tasks]
    missing = [task for task in tasks if task not in named]
    if unknown:
        near = did_you_mean(unknown[0], tasks)
        raise _Unusable(f"the recipe has no task {unknown[0]!r}, only {listing(list(tasks))}.{near}", _SAME_TASKS)
    if missing:
        raise _Unusable(f"nothing is said of the recipe's task {missing[0]!r}", _SAME_TASKS)
    name = "start" if isinstance(entry, WeightsEntry) else "from_step"
    last = max((old.begins for old in before if old.kind == entry.kind), default=0)
    if entry.begins <= last:
        raise _Unusable(f"{name} {entry.begins} does not lie after {last}, where the change before it begins", _RESTORE)
    if isinstance(entry, WeightsEntry) and entry.start % examples:
        what = f"start {entry.start} is not where a step of batch.examples={examples} begins"
        raise _Unusable(what, "replay with the batch.examples of the run that wrote the plan")


_SAME_TASKS = "replay with the tasks of the run that wrote the plan"
