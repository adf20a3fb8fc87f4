"""Rows on their way in: blocks of a bounded number of rows and characters, each row with the place where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrecipes.data.columns import Roles, Wanted

BLOCK_ROWS = 4096
BLOCK_CHARACTERS = 2**21
"""A block ends at so many rows or characters, whichever comes first. Tokenising takes some hundred bytes a token."""
BLOCK_MEDIA = 2**24
"""The same of rows with images or clips, whose bytes count as characters."""

Place = Callable[[int], str]
"""Where the row of a number stands."""


@dataclass(frozen=True)
class Rows:
    """A block: the needed cells of some rows, in order, by the role of their column (see `columns`).

    origin(i) tells a person where its row i stands. folder: where relative paths in cells start from.
    """

    cells: Mapping[str, Sequence[Any]]
    origin: Place = lambda i: f"row {i}"
    folder: Path = Path()

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))

    def row(self, i: int) -> dict[str, Any]:
        """The cells of row i by role."""
        return {role: cells[i] for role, cells in self.cells.items()}

    @classmethod
    def of(cls, columns: Mapping[str, Sequence[Any]], roles: Roles, numbers: Sequence[int], place: Place) -> Rows:
        """The columns that play a role, of rows with these numbers."""
        return cls({role: columns[column] for role, column in roles.items()}, lambda i: place(numbers[i]))


@dataclass(frozen=True)
class RowStream:
    """The rows of one split, to be read once. total: how many there are, where that is known before reading them."""

    blocks: Iterator[Rows]
    total: int | None = None


def in_blocks(
    rows: Iterable[tuple[int, int, Mapping[str, Any]]], wanted: Wanted, title: str, place: Place
) -> Iterator[Rows]:
    """Blocks of rows that come one by one, each with its number and size in characters."""
    roles: Roles = {}
    numbers: list[int] = []
    columns: dict[str, list[Any]] = {}
    held, most = 0, _most(wanted)
    for number, size, row in rows:
        if not roles:
            roles = wanted.among(row, title, sparse=True)
        if not numbers:
            columns, held = {column: [] for column in roles.values()}, 0
        numbers.append(number)
        for column, values in columns.items():
            values.append(row.get(column))
        held += size
        if len(numbers) >= BLOCK_ROWS or held >= most:
            yield Rows.of(columns, roles, numbers, place)
            numbers = []
    if numbers:
        yield Rows.of(columns, roles, numbers, place)


def rows_of_a_block(size: int, rows: int, wanted: Wanted) -> int:
    """Rows in a block, where `rows` of them take `size` bytes."""
    return max(1, min(BLOCK_ROWS, _most(wanted) * rows // max(1, size)))


def _most(wanted: Wanted) -> int:
    """Characters or bytes of a block."""
    return BLOCK_MEDIA if wanted.task.source.media else BLOCK_CHARACTERS
