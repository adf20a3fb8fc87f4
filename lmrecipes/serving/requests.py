"""Real requests: rows of a run's test splits, as a client would send them."""

from __future__ import annotations

import base64
from typing import Any

from lmrecipes.inference.own_rows import test_rows
from lmrecipes.inference.row_predictor import Row
from lmrecipes.recipe import Recipe

Question = dict[str, Any]


def questions_of(recipe: Recipe, most: int) -> list[Question]:
    """Bodies of POST /predict with one row each: rows of the test split of every task with labels (at most so many of
    each, chosen by hash), the tasks in turn; files as base64. Raises InputError where the data cannot be read."""
    by_task = [
        [{"row": _sendable(row), "tasks": [name]} for row in test_rows(recipe, name, most)]
        for name, task in recipe.tasks.items()
        if not task.of_tokens
    ]
    longest = max(map(len, by_task))
    return [rows[at % len(rows)] for at in range(longest) for rows in by_task]


def _sendable(row: Row) -> Question:
    return {key: base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for key, cell in row.items()}
