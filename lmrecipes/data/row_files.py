"""JSONL, CSV, TSV, Parquet, text and IDX files -> blocks of rows. No file but a text is in memory as a whole."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from lmrecipes.data.columns import Roles, Wanted
from lmrecipes.data.idx import IDX, is_idx, read_idx
from lmrecipes.data.rows import Place, Rows, RowStream, in_blocks, rows_of_a_block
from lmrecipes.problems import InputError, Problem, did_you_mean, listing

CSV_BLOCK = 2**22
"""Bytes of a CSV file that are parsed at once; a single row must fit. pyarrow reads up to 32 blocks ahead."""


def matching(pattern: str) -> list[Path]:
    """The files that a path or a glob names, sorted."""
    path = Path(pattern).expanduser()
    if path.exists() or not glob.has_magic(pattern):
        return [path] if path.is_file() else []
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes hidden files and no absolute pattern
    return sorted(Path(name) for name in found if Path(name).is_file())


def open_files(pattern: str, wanted: Wanted, where: str) -> RowStream:
    """The rows of a file, or of all that a glob matches, one after the other. Raises InputError where there is none."""
    paths = matching(pattern)
    if not paths:
        raise InputError(_no_file(pattern, where))
    for path in paths:
        if _format(path) not in _READERS:
            what = f"{path}: unknown format {path.suffix!r}" if path.suffix else f"{path}: a name without a suffix"
            known = listing([suffix for suffix in _READERS if suffix != IDX])
            raise InputError(Problem(where, what, f"use one of {known}, or images in IDX", "file-format"))
    by_suffix = groupby(paths, _format)
    blocks = chain.from_iterable(_READERS[suffix](list(some), wanted, where) for suffix, some in by_suffix)
    return RowStream(blocks, _known_rows(paths, where))


def _format(path: Path) -> str:
    """What the name of a file says of its format: a key of `_READERS`, or an unknown suffix."""
    return IDX if is_idx(path) else path.suffix.lower()


def _no_file(pattern: str, where: str) -> Problem:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return Problem(where, f"{pattern!r} is a folder", f"give a file or a glob: {pattern}/*.jsonl", "file-missing")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    what = f"no file {pattern!r} (relative to {Path.cwd()}).{near}"
    return Problem(where, what, "give the path of a file", "file-missing")


def _broken(where: str, what: str, fix: str = "repair the file") -> InputError:
    return InputError(Problem(where, what, fix, "file-broken"))


def _read_jsonl(path: Path, wanted: Wanted, where: str) -> Iterator[Rows]:
    return in_blocks(_json_rows(path, where), wanted, str(path), lambda number: f"{path} line {number}")


def _json_rows(path: Path, where: str) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not (line := line.strip()):
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise _broken(where, f"{path} line {number}: {error.msg} (column {error.colno})") from None
            except UnicodeDecodeError as error:
                raise _broken(where, f"{path} line {number}: not UTF-8 ({error.reason})") from None
            if not isinstance(row, dict):
                what = f"{path} line {number}: not a JSON object but a {type(row).__name__}"
                raise _broken(where, what, "write one JSON object a line")
            yield number, len(line), row


def _read_csv(path: Path, wanted: Wanted, where: str) -> Iterator[Rows]:
    """All cells are read as text: what a label means is the task's business, not a guess from the first rows."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream, delimiter=delimiter), None)
        if header is None:
            return
        roles = wanted.among(header, str(path))
        columns = sorted(set(roles.values()))
        batches = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),  # one thread counts the rows
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=columns, column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=False
            ),
        )
        # Row 1 is the header, as a spreadsheet and pyarrow's messages count.
        yield from _arrow_blocks(batches, wanted, roles, 2, lambda number: f"{path} row {number}")
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise _broken(where, f"{path}: {error}") from None


def _read_parquet(path: Path, wanted: Wanted, where: str) -> Iterator[Rows]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            roles = wanted.among(file.schema_arrow.names, str(path))
            size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
            batches = file.iter_batches(
                rows_of_a_block(size, file.metadata.num_rows, wanted),
                columns=sorted(set(roles.values())),
                use_threads=False,
            )
            yield from _arrow_blocks(batches, wanted, roles, 0, lambda number: f"{path} row {number}")
    except (pa.ArrowInvalid, OSError) as error:
        raise _broken(where, f"{path}: {error}") from None


def _arrow_blocks(batches: Any, wanted: Wanted, roles: Roles, number: int, place: Place) -> Iterator[Rows]:
    """Blocks of `pyarrow.RecordBatch`es; the first row has this number."""
    for batch in batches:
        step = rows_of_a_block(batch.nbytes, batch.num_rows, wanted)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            columns = {name: part.column(name).to_pylist() for name in set(roles.values())}
            yield Rows.of(columns, roles, range(number, number + part.num_rows), place)
            number += part.num_rows


def _read_texts(paths: list[Path], wanted: Wanted, where: str) -> Iterator[Rows]:
    """Each file is one row, whose only column is `text`."""

    def texts() -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        for number, path in enumerate(paths):
            try:
                text = path.read_bytes().decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise _broken(where, f"{path}: not UTF-8 ({error.reason} at byte {error.start:,})") from None
            yield number, len(text), {"text": text}

    return in_blocks(texts(), wanted, str(paths[0]), lambda number: str(paths[number]))


def _known_rows(paths: list[Path], where: str) -> int | None:
    """Rows of Parquet files, which say it themselves, and of text files."""
    if any(path.suffix.lower() not in (".parquet", ".txt") for path in paths):
        return None
    import pyarrow as pa
    from pyarrow import parquet

    total = 0
    for path in paths:
        try:
            total += 1 if path.suffix.lower() == ".txt" else parquet.read_metadata(path).num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise _broken(where, f"{path}: {error}") from None
    return total


_Reader = Callable[[Path, Wanted, str], Iterator[Rows]]


def _one_by_one(read: _Reader) -> Callable[[list[Path], Wanted, str], Iterator[Rows]]:
    """The reader of some files, of that of one. Paths in a file's rows are relative to its folder."""

    def read_all(paths: list[Path], wanted: Wanted, where: str) -> Iterator[Rows]:
        return (replace(rows, folder=path.parent) for path in paths for rows in read(path, wanted, where))

    return read_all


_READERS: dict[str, Callable[[list[Path], Wanted, str], Iterator[Rows]]] = {
    ".jsonl": _one_by_one(_read_jsonl),
    ".csv": _one_by_one(_read_csv),
    ".tsv": _one_by_one(_read_csv),
    ".parquet": _one_by_one(_read_parquet),
    ".txt": _read_texts,
    IDX: _one_by_one(read_idx),
}
