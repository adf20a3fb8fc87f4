"""Real requests: rows of a run's test splits, as a client would send them."""

from __future__ import annotations

import base64
import heapq
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lmrecipes.data.conversations import BadRow
from lmrecipes.data.ids import ids_rule
from lmrecipes.data.media_cells import file_bytes, lacks
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.data.rows import Rows, RowStream
from lmrecipes.data.sources import open_rows
from lmrecipes.data.targets import CheckedRows
from lmrecipes.inference.row_predictor import Columns
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_inputs import MEDIA

Question = dict[str, Any]


def questions_of(recipe: Recipe, most: int) -> list[Question]:
    """Bodies of POST /predict with one row each: rows of the test split of every task with labels (at most so many of
    each, chosen by hash), the tasks in turn. Raises InputError where the data cannot be read."""
    by_task = [
        [{"row": row, "tasks": [name]} for row in test_rows(recipe, name, most)]
        for name, task in recipe.tasks.items()
        if not task.of_tokens
    ]
    longest = max(map(len, by_task))
    return [rows[at % len(rows)] for at in range(longest) for rows in by_task]


def test_rows(recipe: Recipe, name: str, most: int) -> list[Question]:
    """Rows of a task's test split, JSON-ready: cells by column, files as base64."""
    task = recipe.tasks[name]
    columns = Columns.of(task.source).named
    ranked = ((hash_uniform(hash_key("latency"), np.array([at]))[0], at, cells)
              for at, cells in enumerate(_test_cells(name, recipe)))  # fmt: skip
    chosen = [cells for _, _, cells in heapq.nsmallest(most, ranked)]
    return [_sendable(row, folder, columns, f"tasks.{name}.source") for row, folder in chosen]


def _test_cells(name: str, recipe: Recipe) -> Iterator[tuple[Mapping[str, Any], Path | None]]:
    """Cells by role of all good rows that are in the test split, and where their relative paths start."""
    task, read = recipe.tasks[name], deque[Rows](maxlen=1)

    def kept(blocks: Iterator[Rows]) -> Iterator[Rows]:
        for block in blocks:
            read.append(block)
            yield block

    streams = {split: RowStream(kept(rows.blocks), rows.total) for split, rows in open_rows(name, task).items()}
    for _, pieces in CheckedRows(name, task, streams, ids=ids_rule(recipe, name, None)).blocks():
        for number in pieces["test"].numbers if "test" in pieces else ():
            yield read[0].row(number), read[0].folder


def _sendable(row: Mapping[str, Any], folder: Path | None, columns: Mapping[str, str], where: str) -> Question:
    """A row as JSON can say it. Inputs that it lacks are left out."""
    found = {}
    for role, column in columns.items():
        cell = row[role]
        if role in MEDIA and not lacks(cell):
            try:
                found[column] = base64.b64encode(file_bytes(cell, column, folder)).decode()
            except BadRow as reason:
                raise InputError(Problem(f"{where}.{role}", str(reason), "give files", "latency-rows")) from None
        elif not lacks(cell):
            found[column] = cell.tolist() if hasattr(cell, "tolist") else cell
    return found
