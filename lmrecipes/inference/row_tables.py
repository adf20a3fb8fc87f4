"""Files of rows in, the same rows with answers out: JSONL, CSV, TSV, Parquet, lines of text. Block by block."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Protocol

from lmrecipes.data.row_files import CSV_BLOCK
from lmrecipes.data.rows import BLOCK_CHARACTERS, BLOCK_ROWS
from lmrecipes.files import json_text
from lmrecipes.problems import InputError, Problem, listing

TEXT = "text"
"""The column that lines of a text file stand for."""
FORMATS = (".jsonl", ".csv", ".tsv", ".parquet", ".txt")


@dataclass(frozen=True)
class Block:
    """Some rows with all their cells. place(i) tells a person where row i stands. table: of Parquet the cells as they
    are in the file. broken: why rows that have no cells are no rows at all, by number."""

    rows: list[dict[str, Any]]
    place: Callable[[int], str]
    table: Any = None
    broken: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows to be read once. format: a suffix of FORMATS. folder: where relative paths in it start. columns: None where
    rows may differ. schema: of Parquet. total: rows, where that is known."""

    format: str
    folder: Path
    blocks: Iterator[Block]
    columns: tuple[str, ...] | None = None
    schema: Any = None
    total: int | None = None


def open_table(path: Path) -> Table:
    """A file, by its suffix. Raises InputError."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(Problem(str(path), "no such file", "check the path", "file-missing"))
    if suffix == ".parquet":
        return _parquet(path)
    if suffix in (".csv", ".tsv"):
        return _delimited(path, suffix)
    if suffix not in (".jsonl", ".txt"):
        fix = f"use one of {listing(FORMATS)}"
        raise InputError(Problem(str(path), f"unknown format {path.suffix!r}", fix, "file-format"))
    read = _objects if suffix == ".jsonl" else _lines
    return Table(suffix, path.parent, _in_blocks(read(_opened(path)), str(path), "line"))


def open_stream(stream: IO[bytes], title: str = "standard input") -> Table:
    """JSONL where the first line is a JSON object, else one text a line."""
    leading: list[bytes] = []
    for line in stream:
        leading.append(line)
        if line.strip():
            break
    try:
        is_object = isinstance(json.loads(leading[-1] if leading else b""), dict)
    except ValueError:
        is_object = False
    lines = chain(leading, stream)
    read = _objects if is_object else _lines
    return Table(".jsonl" if is_object else ".txt", Path(), _in_blocks(read(lines), title, "line"))


def _opened(path: Path) -> Iterator[bytes]:
    with path.open("rb") as lines:
        yield from lines


Numbered = Iterator[tuple[int, int, dict[str, Any] | str]]
"""The number of each row's line, its size and its cells, or why it has none."""


def _objects(lines: Iterable[bytes]) -> Numbered:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row: dict[str, Any] | str
        try:
            found = json.loads(line)
            row = found if isinstance(found, dict) else f"not a JSON object but a {type(found).__name__}"
        except json.JSONDecodeError as error:
            row = f"{error.msg} (column {error.colno})"
        except UnicodeDecodeError as error:
            row = f"not UTF-8 ({error.reason})"
        yield number, len(line), row


def _lines(lines: Iterable[bytes]) -> Numbered:
    for number, line in enumerate(lines, 1):
        row: dict[str, Any] | str
        try:
            row = {TEXT: line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")}
        except UnicodeDecodeError as error:
            row = f"not UTF-8 ({error.reason})"
        yield number, len(line), row


def _in_blocks(rows: Numbered, title: str, unit: str) -> Iterator[Block]:
    held: list[dict[str, Any]] = []
    numbers: list[int] = []
    broken: dict[int, str] = {}
    size = 0
    for number, length, row in rows:
        if isinstance(row, str):
            broken[len(held)], row = row, {}
        held.append(row)
        numbers.append(number)
        size += length
        if len(held) >= BLOCK_ROWS or size >= BLOCK_CHARACTERS:
            yield Block(held, _places(title, unit, numbers), broken=broken)
            held, numbers, broken, size = [], [], {}, 0
    if held:
        yield Block(held, _places(title, unit, numbers), broken=broken)


def _places(title: str, unit: str, numbers: Sequence[int]) -> Callable[[int], str]:
    return lambda i: f"{title} {unit} {numbers[i]}"


def _delimited(path: Path, suffix: str) -> Table:
    """Cells are texts, as training reads them."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if suffix == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream, delimiter=delimiter), None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise _broken(str(path), str(error)) from None
    if header is None:
        return Table(suffix, path.parent, iter(()), ())
    if twice := sorted({name for name in header if header.count(name) > 1}):
        fix = "rename all but one"
        raise InputError(Problem(str(path), f"several columns are named {listing(twice)}", fix, "column-repeated"))

    def blocks() -> Iterator[Block]:
        try:
            batches = arrow_csv.open_csv(
                path,
                read_options=arrow_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
                parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
                ),
            )
            # Row 1 is the header, as a spreadsheet counts.
            yield from _arrow_blocks(batches, str(path), 2)
        except pa.ArrowInvalid as error:
            raise _broken(str(path), str(error)) from None

    return Table(suffix, path.parent, blocks(), tuple(header))


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise _broken(str(path), str(error)) from None
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))

    def blocks() -> Iterator[Block]:
        try:
            with file:
                step = _rows_at_once(size, file.metadata.num_rows)
                yield from _arrow_blocks(file.iter_batches(step, use_threads=False), str(path), 0)
        except (pa.ArrowInvalid, OSError) as error:
            raise _broken(str(path), str(error)) from None

    return Table(
        ".parquet", path.parent, blocks(), tuple(file.schema_arrow.names), file.schema_arrow, file.metadata.num_rows
    )


def _arrow_blocks(batches: Any, title: str, number: int) -> Iterator[Block]:
    """Blocks of `pyarrow.RecordBatch`es; the first row has this number."""
    for batch in batches:
        step = _rows_at_once(batch.nbytes, batch.num_rows)
        for start in range(0, batch.num_rows, step):
            part = batch.slice(start, step)
            yield Block(part.to_pylist(), _places(title, "row", range(number, number + part.num_rows)), part)
            number += part.num_rows


def _rows_at_once(size: int, rows: int) -> int:
    """Rows in a block, where `rows` of them take `size` bytes."""
    return max(1, min(BLOCK_ROWS, BLOCK_CHARACTERS * rows // max(1, size)))


class Writer(Protocol):
    """Takes blocks with their answers."""

    def write(self, block: Block, answers: list[dict[str, Any]]) -> None:
        """A block, and for each of its rows the cells that are new."""
        ...

    def close(self) -> None:
        """After the last block."""
        ...


class JsonWriter:
    """One JSON object a line."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file

    def write(self, block: Block, answers: list[dict[str, Any]]) -> None:
        """See `Writer`."""
        for row, answer in zip(block.rows, answers, strict=True):
            self.file.write(json_text({**{key: _sayable(cell) for key, cell in row.items()}, **answer}) + "\n")
        self.file.flush()

    def close(self) -> None:
        """See `Writer`."""


class CsvWriter:
    """Several labels or probabilities of a cell are separated by `|`; probabilities by name are JSON."""

    def __init__(self, file: IO[str], delimiter: str, columns: Sequence[str], new: Sequence[str]) -> None:
        self.file, self.columns, self.new = file, columns, new
        self.rows = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        self.rows.writerow([*columns, *new])

    def write(self, block: Block, answers: list[dict[str, Any]]) -> None:
        """See `Writer`."""
        for row, answer in zip(block.rows, answers, strict=True):
            self.rows.writerow([row[key] for key in self.columns] + [_cell(answer.get(key)) for key in self.new])
        self.file.flush()

    def close(self) -> None:
        """See `Writer`."""


class ParquetWriter:
    """The file's own columns keep their types. types: of the new ones, for pyarrow."""

    def __init__(self, path: Path, schema: Any, types: Mapping[str, Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.types = types
        for name, kind in types.items():
            schema = schema.append(pa.field(name, kind))
        self.schema = schema
        self.file = parquet.ParquetWriter(path, schema)

    def write(self, block: Block, answers: list[dict[str, Any]]) -> None:
        """See `Writer`."""
        import pyarrow as pa

        new = [pa.array([answer.get(name) for answer in answers], kind) for name, kind in self.types.items()]
        columns = [*block.table.columns, *new]
        self.file.write_batch(pa.RecordBatch.from_arrays(columns, schema=self.schema))

    def close(self) -> None:
        """See `Writer`."""
        self.file.close()


def _sayable(cell: Any) -> Any:
    """A Parquet cell as JSON says it: bytes in base64, dates as ISO 8601."""
    if isinstance(cell, bytes):
        return base64.b64encode(cell).decode()
    if isinstance(cell, Mapping):
        return {key: _sayable(part) for key, part in cell.items()}
    if isinstance(cell, list):
        return [_sayable(part) for part in cell]
    return cell if isinstance(cell, str | int | float) or cell is None else str(cell)


def _cell(value: Any) -> Any:
    if isinstance(value, Mapping):
        return json_text(value)
    return "|".join(map(str, value)) if isinstance(value, list) else value


def _broken(where: str, what: str) -> InputError:
    return InputError(Problem(where, what, "repair the file", "file-broken"))
