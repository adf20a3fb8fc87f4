"""What a client asks: the body of POST /predict as rows, tasks and wishes, or what is wrong with it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmrecipes.inference.row_predictor import RowPredictor
from lmrecipes.problems import Problem, did_you_mean, listing
from lmrecipes.serving.refusals import Refused, refused

FIELDS = ("rows", "row", "tasks", "probabilities")
MEDIA = ("image", "audio")


@dataclass(frozen=True)
class Question:
    """Rows to predict. probabilities: of all labels."""

    rows: list[dict[str, Any]]
    tasks: tuple[str, ...]
    probabilities: bool


class Questions:
    """Reads questions to one predictor."""

    def __init__(self, predictor: RowPredictor, max_rows: int) -> None:
        self.tasks = tuple(predictor.specs)
        self.columns = {task: predictor.columns(task).named for task in self.tasks}
        self.max_rows = max_rows

    def columns_of(self, tasks: tuple[str, ...]) -> frozenset[tuple[str, str]]:
        """What these tasks read of a row: role and column."""
        return frozenset(pair for task in tasks for pair in self.columns[task].items())

    def read(self, body: bytes) -> Question:
        """Raises Refused: 400 for what is no JSON, 422 for what cannot be asked."""
        asked = _json(body)
        if not isinstance(asked, dict):
            what = f"must be an object, found {_kind(asked)}"
            raise refused(422, "body", what, 'send {"rows": [{column: value}, ...]}')
        if problems := [_unknown("body", name, FIELDS, "field") for name in asked if name not in FIELDS]:
            raise Refused(422, problems)
        tasks = self._tasks(asked.get("tasks"))
        probabilities = asked.get("probabilities", False)
        if not isinstance(probabilities, bool):
            raise refused(422, "probabilities", f"must be true or false, found {_kind(probabilities)}", "send either")
        return Question(self._rows(asked, tasks), tasks, probabilities)

    def _tasks(self, named: Any) -> tuple[str, ...]:
        if named is None:
            return self.tasks
        if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
            fix = f"name some of {listing(self.tasks)}, or leave it out to ask all"
            raise refused(422, "tasks", "must be a list of one name or more", fix)
        if problems := [_unknown("tasks", name, self.tasks, "task") for name in named if name not in self.tasks]:
            raise Refused(422, problems)
        return tuple(dict.fromkeys(named))

    def _rows(self, asked: Mapping[str, Any], tasks: tuple[str, ...]) -> list[dict[str, Any]]:
        if ("rows" in asked) == ("row" in asked):
            what = "both rows and row are given" if "row" in asked else "there are no rows"
            raise refused(422, "body", what, 'send either "rows": [{column: value}, ...] or "row": {column: value}')
        rows = asked["rows"] if "rows" in asked else [asked["row"]]
        if not isinstance(rows, list) or not rows:
            what = "is empty" if rows == [] else f"must be a list, found {_kind(rows)}"
            raise refused(422, "rows", what, "send one row or more")
        if len(rows) > self.max_rows:
            what = f"at most {self.max_rows} rows in one request, found {len(rows)}"
            raise refused(422, "rows", what, "send several requests")
        known = tuple(dict.fromkeys(column for columns in self.columns.values() for column in columns.values()))
        media = {self.columns[task][role] for task in tasks for role in MEDIA if role in self.columns[task]}
        problems, read = [], []
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                what = f"must be an object of column and value, found {_kind(row)}"
                problems.append(Problem(f"row {number}", what, f"give it the columns {listing(known)}"))
                continue
            problems += [_unknown(f"row {number}", name, known, "column") for name in row if name not in known]
            try:
                read.append({name: _decoded(cell) if name in media else cell for name, cell in row.items()})
            except ValueError as error:
                problems.append(Problem(f"row {number}", str(error), "send images and clips as base64 in a string"))
        if problems:
            raise Refused(422, problems)
        return read


def _json(body: bytes) -> Any:
    """Raises Refused for what is no JSON (RFC 8259: no NaN, no infinity), or nested deeper than Python reads."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else f"not JSON: {error}"
        raise refused(400, "body", what, 'send {"rows": [{column: value}, ...]} in UTF-8') from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is none of its values")


def _unknown(where: str, name: str, known: tuple[str, ...], what: str) -> Problem:
    fix = f"use {'one' if len(known) > 1 else 'the one'} of {listing(known)}" if known else "leave it out"
    return Problem(where, f"no {what} {name[:80]!r}.{did_you_mean(name[:80], known)}", fix)


def _decoded(cell: Any) -> bytes | None:
    """The file in a base64 string: never a path of this machine. Raises ValueError."""
    if cell is None:
        return None
    if not isinstance(cell, str):
        raise ValueError(f"a file is expected, found {_kind(cell)}")
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"a file is expected, and {cell[:20]!r}... is no base64") from None


def _kind(value: Any) -> str:
    """What a JSON value is, for people."""
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
