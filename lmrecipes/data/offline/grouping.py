"""What the readers of the offline data sets share: rows, groups, and phrasings that are chosen by hash."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmrecipes.data.permutation import hash_key

Row = dict[str, Any]
"""group: str, and for a task on texts `text` and perhaps `label`: float, class name, or list of class names."""


def pick(choices: Sequence[str], purpose: str, name: str) -> str:
    """One of several phrasings, always the same for a name."""
    return choices[hash_key(purpose, name) % len(choices)]


def join_duplicates(rows: list[Row], texts: Callable[[Row], Iterable[str]] = lambda row: [row["text"]]) -> list[Row]:
    """Rows that share one of their texts (whatever its case) get the same group, and so do all rows of the groups that
    this joins (union-find)."""
    leader: dict[str, str] = {}

    def root(group: str) -> str:
        while (above := leader.get(group, group)) != group:
            leader[group] = leader.get(above, above)
            group = above
        return group

    group_of: dict[str, str] = {}
    for row in rows:
        for text in texts(row):
            first = root(group_of.setdefault(text.casefold(), row["group"]))
            if (other := root(row["group"])) != first:
                leader[other] = first
    return [row | {"group": root(row["group"])} for row in rows]
