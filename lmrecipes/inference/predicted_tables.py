"""Rows of files, or of standard input, with their answers: one block in memory at a time, in order."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmrecipes.data.progress import progress_in_rows
from lmrecipes.files import sync_folder
from lmrecipes.inference.row_predictor import Columns, Row, RowPredictor, RowsRefused, answers
from lmrecipes.inference.row_tables import (
    TEXT,
    Block,
    CsvWriter,
    JsonWriter,
    ParquetWriter,
    Table,
    Writer,
    open_stream,
    open_table,
)
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError, Problem, listing

if TYPE_CHECKING:
    from lmrecipes.predict import PredictOptions

log = logging.getLogger(__name__)

SHOWN = 3
"""Bad rows that an error quotes."""


def predict_tables(predictor: RowPredictor, options: PredictOptions, tasks: Sequence[str] | None) -> int:
    """Answer all rows; returns how many could not be read. tasks: None: those whose columns the rows have.

    Raises InputError for files that do not go together or that cannot be read, and for bad rows.
    """
    tables = [open_table(path) for path in options.files] or [open_stream(sys.stdin.buffer)]
    _require_alike(tables, options)
    totals = [table.total for table in tables]
    total = None if None in totals else sum(total for total in totals if total is not None)
    unread, writer, answering = 0, None, None
    with ExitStack() as stack:
        output = stack.enter_context(_output(options.to))
        advance = stack.enter_context(progress_in_rows("predicting", total))
        for table in tables:
            for block in table.blocks:
                if answering is None or writer is None:
                    answering = _Answering.of(predictor, table, block, tasks, options)
                    writer = _writer(table, options.to, output, answering)
                    stack.callback(writer.close)
                found, bad = answering(table, block)
                writer.write(block, found)
                unread += bad
                advance(len(block.rows))
        if writer is None:  # no row at all
            answering = _Answering.of(predictor, tables[0], Block([], str), tasks, options)
            _writer(tables[0], options.to, output, answering).close()
    if unread:
        log.warning("%s row(s) could not be read: their answers are null", f"{unread:,}")
    return unread


@dataclass(frozen=True)
class _Answering:
    """Turns blocks into answers. groups: tasks that read the same columns. names: by task and key of an answer the new
    column."""

    predictor: RowPredictor
    groups: dict[Columns, list[str]]
    names: dict[tuple[str, str], str]
    every: bool
    skip: bool

    @classmethod
    def of(
        cls, predictor: RowPredictor, table: Table, first: Block, tasks: Sequence[str] | None, options: PredictOptions
    ) -> _Answering:
        """For tables like this one, whose first block is known. Raises InputError where columns are missing."""
        have = set(table.columns or ()).union(*first.rows)
        lacking = {task: _lacking(predictor.columns(task), have, table) for task in tasks or predictor.specs}
        known = table.columns is not None or any(first.rows)
        absent = [task for task, missing in lacking.items() if missing and known]
        usable = [task for task in lacking if task not in absent]
        if absent and (tasks is not None or not usable):
            raise InputError([_columns_problem(task, predictor.columns(task), have, table) for task in absent])
        if absent:
            log.info("not predicted, for want of their columns: %s", listing(absent))
        groups: dict[Columns, list[str]] = {}
        for task in usable:
            groups.setdefault(predictor.columns(task), []).append(task)
        names: dict[tuple[str, str], str] = {}
        for task in usable:
            for key in _keys(predictor.specs[task], options.probabilities):
                names[task, key] = _free(f"{task}_{key}", have | set(names.values()))
        return cls(predictor, groups, names, options.probabilities, options.on_bad_row == "skip")

    def __call__(self, table: Table, block: Block) -> tuple[list[dict[str, Any]], int]:
        """The new cells of each row, and how many rows could not be read for some task."""
        new = set(self.names.values())
        for number, row in enumerate(block.rows):
            if clash := new & row.keys():
                what = f"it has a column {min(clash)!r}, as the answers do, and the first rows had none"
                raise InputError(Problem(block.place(number), what, "rename it", "column-repeated"))
        found: list[dict[str, Any]] = [dict.fromkeys(self.names.values()) for _ in block.rows]
        if block.broken and not self.skip:
            raise _refused(block, block.broken)
        unread = set(block.broken)
        for columns, tasks in self.groups.items():
            rows = [_as_read(row, columns, table) if row else row for row in block.rows]
            good, values = self._predicted(block, rows, tasks)
            unread.update(set(range(len(rows))) - set(good))
            for task in tasks:
                said = answers(self.predictor.specs[task], values[task], self.every)
                for number, answer in zip(good, said, strict=True):
                    found[number] |= {self.names[task, key]: value for key, value in answer.items()}
        return found, len(unread)

    def _predicted(self, block: Block, rows: list[Row], tasks: list[str]) -> tuple[list[int], dict[str, Any]]:
        """The numbers of the rows that can be read, and their values."""
        good = [number for number in range(len(rows)) if number not in block.broken]
        while True:  # members of a combination refuse one after the other
            try:
                return good, self.predictor.predict([rows[number] for number in good], tasks)
            except RowsRefused as bad:
                if not self.skip:
                    raise _refused(block, {good[at]: why for at, why in bad.rows.items()}) from None
                good = [number for at, number in enumerate(good) if at not in bad.rows]


def _refused(block: Block, bad: Mapping[int, str]) -> InputError:
    fix = "repair the rows, or answer null with --on-bad-row skip"
    more = f"; and {len(bad) - SHOWN} more like it nearby" if len(bad) > SHOWN else ""
    shown = list(bad.items())[:SHOWN]
    return InputError(
        [
            Problem(block.place(number), what + (more if at == len(shown) - 1 else ""), fix, "bad-row")
            for at, (number, what) in enumerate(shown)
        ]
    )


def _as_read(row: Row, columns: Columns, table: Table) -> Row:
    """What the predictor reads: a line as the column of texts, paths as from the table's folder."""
    if table.format == ".txt" and columns.text is not None:
        return {columns.text: row[TEXT]}
    paths = {column: row.get(column) for modality in columns.media if (column := getattr(columns, modality))}
    located = {
        column: str(table.folder / Path(cell).expanduser())
        for column, cell in paths.items()
        if isinstance(cell, str) and cell.strip()
    }
    return {**row, **located} if located else row


def _lacking(columns: Columns, have: set[str], table: Table) -> list[str]:
    """Columns that the rows lack. Of several inputs a row may lack some."""
    named = columns.named
    if table.format == ".txt":
        return [column for role, column in named.items() if role != "text"] if columns.text else list(named.values())
    several = len(columns.media) + (columns.text is not None) > 1
    missing = [column for column in named.values() if column not in have]
    return [] if several and len(missing) < len(named) else missing


def _columns_problem(task: str, columns: Columns, have: set[str], table: Table) -> Problem:
    named = listing(list(columns.named.values()))
    if table.format == ".txt":
        what, fix = f"reads the columns {named}, and lines of text are one column", "give a JSONL or Parquet file"
    else:
        what = f"reads the columns {named}, and the rows have {listing(sorted(have)) or 'none'}"
        fix = "rename the columns, or name other tasks with --task"
    return Problem(f"task {task}", what, fix, "column-missing")


def _keys(spec: HeadSpec, every: bool) -> list[str]:
    """Keys of the task's answers."""
    if spec.kind == "regression":
        return ["value"]
    if spec.kind == "multi_label":
        return ["labels", "probabilities"]
    return ["label", "probability", *(["probabilities"] if every else [])]


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken."""
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    return free


def _require_alike(tables: Sequence[Table], options: PredictOptions) -> None:
    """Raise InputError for tables that cannot become one, or not in the format asked for."""
    first, problems = tables[0], []
    for path, table in zip(options.files[1:], tables[1:], strict=False):
        if (table.format, table.columns, table.schema) != (first.format, first.columns, first.schema):
            what = f"has another format, or other columns, than {options.files[0]}"
            problems.append(Problem(str(path), what, "predict it by itself", "files-differ"))
    if options.to is None and first.format == ".parquet":
        what = "a Parquet file cannot go to standard output"
        problems.append(Problem("--to", what, "name a .parquet or .jsonl file with --to", "predict-format"))
    own = ".jsonl" if first.format == ".txt" else first.format
    if options.to is not None and options.to.suffix.lower() not in (own, ".jsonl"):
        what = f"{options.to.suffix!r} is not the format of the rows"
        fix = f"give it a suffix of {listing(list(dict.fromkeys([own, '.jsonl'])))}"
        problems.append(Problem("--to", what, fix, "predict-format"))
    if problems:
        raise InputError(problems)


@contextmanager
def _output(to: Path | None) -> Iterator[Callable[[], Any]]:
    """What gives the open text file, or with `path` the name to write to. The file appears, whole, at the end."""
    if to is None:
        yield lambda: sys.stdout
        return
    partial = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w+", encoding="utf-8", newline="") as file:
            yield lambda: file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(to)
        sync_folder(to.parent)
    finally:
        partial.unlink(missing_ok=True)


def _writer(table: Table, to: Path | None, output: Callable[[], Any], answering: _Answering) -> Writer:
    suffix = table.format if to is None else to.suffix.lower()
    new = list(answering.names.values())
    if suffix in (".csv", ".tsv"):
        return CsvWriter(output(), "\t" if suffix == ".tsv" else ",", table.columns or (), new)
    if suffix == ".parquet":
        return ParquetWriter(output().buffer, table.schema, _arrow_types(answering))
    return JsonWriter(output())


def _arrow_types(answering: _Answering) -> dict[str, Any]:
    """pyarrow's types of the new columns."""
    import pyarrow as pa

    types = {}
    for (task, key), name in answering.names.items():
        by_label = pa.struct([(label, pa.float64()) for label in answering.predictor.specs[task].labels])
        several = by_label if answering.every else pa.list_(pa.float64())
        kinds = {"value": pa.float64(), "label": pa.string(), "probability": pa.float64()}
        types[name] = kinds.get(key) or (pa.list_(pa.string()) if key == "labels" else several)
    return types
