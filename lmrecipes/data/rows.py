"""Rows on their way in: blocks of a bounded number of rows and characters, each row with the place where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Source

BLOCK_ROWS = 4096
BLOCK_CHARACTERS = 2**21
"""A block ends at so many rows or characters, whichever comes first. Tokenising takes some hundred bytes a token."""

Columns = Mapping[str, Sequence[Any]]
Place = Callable[[int], str]
"""Where the row of a number stands."""


@dataclass(frozen=True)
class Rows:
    """A block: the needed columns of some rows, in order; `origin(i)` tells a person where its row i stands."""

    texts: Sequence[Any]
    pairs: Sequence[Any] | None
    labels: Sequence[Any]
    groups: Sequence[Any] | None = None
    origin: Place = lambda i: f"row {i}"

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, columns: Columns, source: Source, numbers: Sequence[int], place: Place) -> Rows:
        """The columns that `source` names, of rows with these numbers."""
        return cls(
            columns[source.text],
            None if source.text_pair is None else columns[source.text_pair],
            columns[source.label],
            None if source.group is None else columns[source.group],
            lambda i: place(numbers[i]),
        )


@dataclass(frozen=True)
class RowStream:
    """The rows of one split, to be read once. total: how many there are, where that is known before reading them."""

    blocks: Iterator[Rows]
    total: int | None = None


def in_blocks(rows: Iterable[tuple[int, int, Mapping[str, Any]]], source: Source, place: Place) -> Iterator[Rows]:
    """Blocks of rows that come one by one, each with its number and size in characters."""
    wanted = wanted_columns(source)
    numbers: list[int] = []
    columns: dict[str, list[Any]] = {column: [] for column in wanted}
    held = 0
    for number, size, row in rows:
        numbers.append(number)
        for column, values in columns.items():
            values.append(row.get(column))
        held += size
        if len(numbers) >= BLOCK_ROWS or held >= BLOCK_CHARACTERS:
            yield Rows.of(columns, source, numbers, place)
            numbers, columns, held = [], {column: [] for column in wanted}, 0
    if numbers:
        yield Rows.of(columns, source, numbers, place)


def rows_of_a_block(size: int, rows: int) -> int:
    """Rows in a block, where `rows` of them take `size` bytes."""
    return max(1, min(BLOCK_ROWS, BLOCK_CHARACTERS * rows // max(1, size)))


def columns_of(source: Source) -> dict[str, str]:
    """Column by the role it plays, which is the name of the source's field."""
    roles = {"text": source.text, "text_pair": source.text_pair, "label": source.label, "group": source.group}
    return {role: column for role, column in roles.items() if column is not None}


def wanted_columns(source: Source) -> list[str]:
    """The columns to read, each once."""
    return list(dict.fromkeys(columns_of(source).values()))


def require_columns(found: Iterable[str], source: Source, where: str, title: str) -> None:
    """Raise InputError for each column that is missing, or stands twice, in what `title` names."""
    names = [str(name) for name in found]
    base = where.partition(".source")[0] + ".source"
    problems = []
    for role, column in columns_of(source).items():
        if column not in names:
            what = f"{title} has no column {column!r}; it has {listing(names)}.{did_you_mean(column, names)}"
            problems.append(Problem(f"{base}.{role}", what, f"set {base}.{role} to a column", "column-missing"))
        elif names.count(column) > 1:
            what = f"{title} has {names.count(column)} columns {column!r}"
            problems.append(Problem(f"{base}.{role}", what, "rename all but one", "column-repeated"))
    if problems:
        raise InputError(problems)
