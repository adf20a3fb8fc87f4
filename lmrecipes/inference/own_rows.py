"""Real rows to predict: those of a run's test splits, as the files have them."""

from __future__ import annotations

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
from lmrecipes.inference.row_predictor import Columns, Row
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_inputs import MEDIA


def test_rows(recipe: Recipe, name: str, most: int) -> list[Row]:
    """At most so many rows of a task's test split, chosen by hash: cells by column, of images and clips the bytes of
    their files. Raises InputError where the data cannot be read."""
    task = recipe.tasks[name]
    columns = Columns.of(task.source).named
    chosen = [cells for _, _, cells in heapq.nsmallest(most, _ranked(name, recipe))]
    return [_readable(row, folder, columns, f"tasks.{name}.source") for row, folder in chosen]


Cells = tuple[Mapping[str, Any], Path | None]
"""A row's cells by role, and where their relative paths start."""


def _ranked(name: str, recipe: Recipe) -> Iterator[tuple[float, int, Cells]]:
    """All good rows of the test split: a hash, the number, the cells."""
    task, read = recipe.tasks[name], deque[Rows](maxlen=1)

    def kept(blocks: Iterator[Rows]) -> Iterator[Rows]:
        for block in blocks:
            read.append(block)
            yield block

    streams = {split: RowStream(kept(rows.blocks), rows.total) for split, rows in open_rows(name, task).items()}
    key, before = hash_key("latency"), 0
    for _, pieces in CheckedRows(name, task, streams, ids=ids_rule(recipe, name, None)).blocks():
        numbers = pieces["test"].numbers if "test" in pieces else []
        places = range(before, before + len(numbers))
        for rank, place, number in zip(hash_uniform(key, np.array(places, np.int64)), places, numbers, strict=True):
            yield rank, place, (read[0].row(number), read[0].folder)
        before += len(numbers)


def _readable(row: Mapping[str, Any], folder: Path | None, columns: Mapping[str, str], where: str) -> Row:
    """A row by its columns. Inputs that it lacks are left out."""
    found = {}
    for role, column in columns.items():
        cell = row[role]
        if lacks(cell):
            continue
        if role in MEDIA:
            try:
                found[column] = file_bytes(cell, column, folder)
            except BadRow as reason:
                raise InputError(Problem(f"{where}.{role}", str(reason), "give files", "latency-rows")) from None
        else:
            found[column] = cell.tolist() if hasattr(cell, "tolist") else cell
    return found
