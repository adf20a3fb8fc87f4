"""Which columns a task reads: for each role that it knows (`text`, `label`, `turns`, ...) the column that plays it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Task

Roles = dict[str, str]
"""Column by role."""

LAYOUTS: Mapping[str, Roles] = {
    "messages": {"turns": "messages"},
    "sharegpt": {"turns": "conversations"},
    "alpaca": {"prompt": "instruction", "completion": "output"},
    "prompt_completion": {"prompt": "prompt", "completion": "completion"},
}
"""Columns that a conversation needs, by layout, where the recipe names no others."""
OPTIONAL: Mapping[str, Roles] = {
    "messages": {"system": "system"},
    "sharegpt": {"system": "system"},
    "alpaca": {"context": "input", "system": "system"},
    "prompt_completion": {"system": "system"},
}
"""Columns that are read where they are there."""


@dataclass(frozen=True)
class Wanted:
    """What a task reads of each row. where: the source's field, `tasks.NAME.source`."""

    task: Task
    where: str

    def among(self, found: Iterable[str], title: str, sparse: bool = False) -> Roles:
        """The column of each role, of the columns `found` in what `title` names.

        sparse: these are the first row's only, and others may hold more. Raises InputError for each column that is
        missing or stands twice.
        """
        names = [str(name) for name in found]
        prefix, needed, optional = self._roles(names, title)
        problems = []
        for role, column in needed.items():
            field = f"{self.where}.{role}" if role == "group" else f"{self.where}.{prefix}{role}"
            if column not in names:
                what = f"{title} has no column {column!r}; it has {listing(names)}.{did_you_mean(column, names)}"
                problems.append(Problem(field, what, f"set {field} to a column", "column-missing"))
            elif names.count(column) > 1:
                what = f"{title} has {names.count(column)} columns {column!r}"
                problems.append(Problem(field, what, "rename all but one", "column-repeated"))
        if problems:
            raise InputError(problems)
        return needed | {role: column for role, column in optional.items() if sparse or names.count(column) == 1}

    def _roles(self, names: list[str], title: str) -> tuple[str, Roles, Roles]:
        """Where the fields stand below the source's, the columns that must be there, and those that may."""
        source = self.task.source
        group = {} if source.group is None else {"group": source.group}
        if self.task.kind == "chat":
            needed, optional = self._of_chat(names, title)
            return "chat.", needed | group, optional
        inputs = {"text": source.text_column, "ids": source.ids, "image": source.image, "audio": source.audio}
        needed = {role: column for role, column in inputs.items() if column is not None}
        if source.text_pair is not None:
            needed["text_pair"] = source.text_pair
        if not self.task.of_tokens:
            needed["label"] = source.label
        return "", needed | group, {}

    def _of_chat(self, names: list[str], title: str) -> tuple[Roles, Roles]:
        """The columns of the layout that the recipe names, else of the first whose columns are all there."""
        chat = self.task.source.chat
        named = {
            role: column
            for role in ("turns", "prompt", "context", "completion", "system")
            if (column := getattr(chat, role)) is not None
        }
        layouts = LAYOUTS if chat.layout == "auto" else {chat.layout: LAYOUTS[chat.layout]}
        for layout, columns in layouts.items():
            known = columns.keys() | OPTIONAL[layout].keys() | ({"context"} if "prompt" in columns else set())
            needed = columns | {role: column for role, column in named.items() if role in known}
            fits = named.keys() <= known and all(column in names for column in needed.values())
            if fits or chat.layout != "auto":
                return needed, {role: column for role, column in OPTIONAL[layout].items() if role not in needed}
        what = f"no conversation is found in the columns of {title}: it has {listing(names)}"
        fix = f"set {self.where}.chat.turns to the column of a list of turns, or chat.prompt and chat.completion"
        raise InputError(Problem(f"{self.where}.chat", what, fix, "chat-columns"))
