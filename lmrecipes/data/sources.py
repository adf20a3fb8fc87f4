"""Sources -> rows. Reads the columns that a task needs from files, `datasets`, a function or the offline data."""

from __future__ import annotations

import csv
import glob
import importlib.util
import json
import logging
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Source, Task

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
WHOLE = "all"
"""Name of the rows of a source that has no splits of its own."""
CSV_BLOCK = 2**24
"""Bytes of a CSV file that are parsed at once; a single row must fit."""

Columns = dict[str, list[Any]]


@dataclass
class Rows:
    """The needed columns of one split; `origin(i)` tells a person where row i stands."""

    texts: list[Any] = field(default_factory=list)
    pairs: list[Any] | None = None
    labels: list[Any] = field(default_factory=list)
    groups: list[Any] | None = None
    origin: Callable[[int], str] = lambda i: f"row {i}"

    def __len__(self) -> int:
        return len(self.texts)

    def extend(self, columns: Columns, source: Source) -> None:
        """Append the columns that `source` names."""
        self.texts += columns[source.text]
        self.labels += columns[source.label]
        if source.text_pair is not None:
            self.pairs = [] if self.pairs is None else self.pairs
            self.pairs += columns[source.text_pair]
        if source.group is not None:
            self.groups = [] if self.groups is None else self.groups
            self.groups += columns[source.group]


def read_rows(name: str, task: Task) -> dict[str, Rows]:
    """Rows of a task by split (`all` where the source has none). Raises InputError naming file, column and fix."""
    where = f"tasks.{name}.source"
    by_split = _read(task.source, where)
    if empty := [split for split, rows in by_split.items() if len(rows) == 0]:
        what = "has no rows" if empty == [WHOLE] else f"has no rows in the split(s) {', '.join(empty)}"
        raise InputError(Problem(where, what, "give a source that has some", "source-empty"))
    return by_split


def source_state(source: Source) -> list[Any]:
    """What changes when the data changes: part of the encoded data's fingerprint.

    Files count with path, size and time of change. Of a function only its module's file is known, of a `datasets` name
    on the hub only the name.
    """
    patterns = [source.files] if source.files else list((source.splits or {}).values())
    paths = [path for pattern in patterns for path in _matching(pattern)]
    if source.dataset and Path(source.dataset).is_dir():
        paths = [path for path in Path(source.dataset).rglob("*") if path.is_file()]
    if source.function and (module := _module_file(source.function.partition(":")[0])):
        paths = [module]
    state: list[Any] = [source.model_dump(mode="json")]
    for path in sorted(set(paths)):
        status = path.stat()
        state.append([str(path.absolute()), status.st_size, status.st_mtime_ns])
    if source.offline:
        from lmrecipes.data import offline

        if source.offline in offline.OFFLINE:
            state.append(offline.version(source.offline))
    return state


def _read(source: Source, where: str) -> dict[str, Rows]:
    if source.files is not None:
        return {WHOLE: _read_files(source.files, source, f"{where}.files")}
    if source.splits is not None:
        return {split: _read_files(path, source, f"{where}.splits.{split}") for split, path in source.splits.items()}
    if source.offline is not None:
        return {WHOLE: _from_dicts(_load_offline(source.offline, f"{where}.offline"), source, where, source.offline)}
    if source.function is not None:
        return _by_split(_call(source.function, f"{where}.function"), source, where, source.function)
    assert source.dataset is not None
    return _by_split(_load_dataset(source.dataset, f"{where}.dataset"), source, where, source.dataset)


def _matching(pattern: str) -> list[Path]:
    """The files that a path or a glob names, sorted."""
    path = Path(pattern).expanduser()
    if path.exists() or not glob.has_magic(pattern):
        return [path] if path.is_file() else []
    found = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes hidden files and no absolute pattern
    return sorted(Path(name) for name in found if Path(name).is_file())


def _read_files(pattern: str, source: Source, where: str) -> Rows:
    paths = _matching(pattern)
    if not paths:
        raise InputError(_no_file(pattern, where))
    rows = Rows()
    starts, places = [], []
    for path in paths:
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            what = f"{path}: unknown format {path.suffix!r}" if path.suffix else f"{path}: a name without a suffix"
            raise InputError(Problem(where, what, f"use one of {listing(list(_READERS))}", "file-format"))
        columns, place = reader(path, source, where)
        starts.append(len(rows))
        places.append(place)
        rows.extend(columns, source)

    def origin(i: int) -> str:
        part = bisect_right(starts, i) - 1
        return f"{paths[part]} {places[part](i - starts[part])}"

    rows.origin = origin
    return rows


def _no_file(pattern: str, where: str) -> Problem:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return Problem(where, f"{pattern!r} is a folder", f"give a file or a glob: {pattern}/*.jsonl", "file-missing")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
    what = f"no file {pattern!r} (relative to {Path.cwd()}).{near}"
    return Problem(where, what, "give the path of a file", "file-missing")


def _columns_of(source: Source) -> dict[str, str]:
    """Column by the role it plays, which is the name of the source's field."""
    roles = {"text": source.text, "text_pair": source.text_pair, "label": source.label, "group": source.group}
    return {role: column for role, column in roles.items() if column is not None}


def _wanted(source: Source) -> list[str]:
    """The columns to read, each once."""
    return list(dict.fromkeys(_columns_of(source).values()))


def _require_columns(found: Iterable[str], source: Source, where: str, title: str) -> None:
    names = [str(name) for name in found]
    base = where.partition(".source")[0] + ".source"
    problems = []
    for role, column in _columns_of(source).items():
        if column not in names:
            what = f"{title} has no column {column!r}; it has {listing(names)}.{did_you_mean(column, names)}"
            problems.append(Problem(f"{base}.{role}", what, f"set {base}.{role} to a column", "column-missing"))
        elif names.count(column) > 1:
            what = f"{title} has {names.count(column)} columns {column!r}"
            problems.append(Problem(f"{base}.{role}", what, "rename all but one", "column-repeated"))
    if problems:
        raise InputError(problems)


def _broken(where: str, what: str, fix: str = "repair the file") -> InputError:
    return InputError(Problem(where, what, fix, "file-broken"))


Place = Callable[[int], str]
"""Where the i-th row of a file stands."""


def _read_jsonl(path: Path, source: Source, where: str) -> tuple[Columns, Place]:
    wanted = _wanted(source)
    columns: Columns = {column: [] for column in wanted}
    numbers: list[int] = []
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
            if not numbers:
                _require_columns(row, source, where, str(path))
            numbers.append(number)
            for column in wanted:
                columns[column].append(row.get(column))
    return columns, lambda i: f"line {numbers[i]}"


def _read_csv(path: Path, source: Source, where: str) -> tuple[Columns, Place]:
    """All cells are read as text: what a label means is the task's business, not a guess from the first rows."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    wanted = _wanted(source)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header = next(csv.reader(stream, delimiter=delimiter), None)
        if header is None:
            return {column: [] for column in wanted}, str
        _require_columns(header, source, where, str(path))
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),  # one thread counts the rows
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise _broken(where, f"{path}: {error}") from None
    # Row 1 is the header, as a spreadsheet and pyarrow's messages count.
    return {column: table[column].to_pylist() for column in wanted}, lambda i: f"row {i + 2}"


def _read_parquet(path: Path, source: Source, where: str) -> tuple[Columns, Place]:
    import pyarrow as pa
    from pyarrow import parquet

    wanted = _wanted(source)
    try:
        with parquet.ParquetFile(path) as file:
            _require_columns(file.schema_arrow.names, source, where, str(path))
            table = file.read(columns=wanted)
    except (pa.ArrowInvalid, OSError) as error:
        raise _broken(where, f"{path}: {error}") from None
    return {column: table[column].to_pylist() for column in wanted}, lambda i: f"row {i}"


_READERS: dict[str, Callable[[Path, Source, str], tuple[Columns, Place]]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _from_dicts(dicts: Iterable[Any], source: Source, where: str, title: str) -> Rows:
    columns: Columns = {column: [] for column in _wanted(source)}
    for number, row in enumerate(dicts):
        if not isinstance(row, Mapping):
            what = f"{title} row {number} is a {type(row).__name__}, not a dictionary"
            raise InputError(Problem(where, what, "yield dictionaries of column and value", "row-type"))
        if number == 0:
            _require_columns(row, source, where, title)
        for column, values in columns.items():
            values.append(row.get(column))
    return _titled(columns, source, title)


def _from_dataset(dataset: Any, source: Source, where: str, title: str) -> Rows:
    """Rows of a `datasets.Dataset`, read by column. Where labels are a `ClassLabel`, -1 says that there is none."""
    _require_columns(dataset.column_names, source, where, title)
    columns = dict(dataset.with_format(None).select_columns(_wanted(source))[:])
    if hasattr(dataset.features[source.label], "names"):
        columns[source.label] = [None if label == -1 else label for label in columns[source.label]]
    return _titled(columns, source, title)


def _titled(columns: Columns, source: Source, title: str) -> Rows:
    rows = Rows(origin=lambda i: f"{title} row {i}")
    rows.extend(columns, source)
    return rows


def _by_split(data: Any, source: Source, where: str, title: str) -> dict[str, Rows]:
    """Rows of a dictionary of splits, or of one iterable of rows or `Dataset`."""

    def rows(part: Any, title: str) -> Rows:
        read = _from_dataset if hasattr(part, "select_columns") and hasattr(part, "__len__") else _from_dicts
        return read(part, source, where, title)

    if not isinstance(data, Mapping):
        if not isinstance(data, Iterable):
            what = f"{title} gave a {type(data).__name__}, not rows"
            raise InputError(Problem(where, what, "return an iterable of dictionaries", "row-type"))
        return {WHOLE: rows(data, title)}
    unknown = [split for split in data if split not in SPLITS]
    if unknown or "train" not in data:
        what = f"{title} has the splits {listing(list(map(str, data))) or 'none'}"
        fix = f"name them {listing(SPLITS)}; only `train` must be there"
        raise InputError(Problem(where, what, fix, "split-unknown" if unknown else "split-missing"))
    return {split: rows(part, f"{title}[{split}]") for split, part in data.items()}


def _load_offline(name: str, where: str) -> list[dict[str, Any]]:
    from lmrecipes.data import offline

    if name not in offline.OFFLINE:
        known = list(offline.OFFLINE)
        what = f"{name!r} is not one of the offline data sets.{did_you_mean(name, known)}"
        raise InputError(Problem(where, what, f"use one of {listing(known)}", "source-unknown"))
    return offline.load(name)


def _import_from_here() -> None:
    """Let modules of the working directory be imported, as `python -m` does and a console script does not.

    Last on the path: a file of the user's never hides an installed package.
    """
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()


def _module_file(module: str) -> Path | None:
    """The file of a function's module; None where it cannot be found, which reading the rows will say."""
    _import_from_here()
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def _call(dotted: str, where: str) -> Any:
    """What `module:function` returns. An error inside the function is the user's to see as it is."""
    _import_from_here()
    module, _, attribute = dotted.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
        if not callable(function):
            raise TypeError(f"a {type(function).__name__}, not a function")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        fix = f"write `module:function` of a module in {Path.cwd()} or installed"
        raise InputError(Problem(where, f"{dotted!r} cannot be imported ({error})", fix, "function-missing")) from None
    return function()


def _load_dataset(name: str, where: str) -> Any:
    """A `datasets` name or a local folder: a `Dataset`, or a dictionary of the known splits."""
    import datasets
    from datasets.exceptions import DatasetsError

    path, _, config = name.partition(":")
    folder = Path(path)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            loaded = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        offline = " HF_HUB_OFFLINE is set." if os.environ.get("HF_HUB_OFFLINE", "0").upper() in _TRUE else ""
        what = f"{name!r} could not be loaded ({reason}).{offline}"
        raise InputError(
            Problem(where, what, "check the name and the network, or use local files", "dataset-missing")
        ) from None
    if not isinstance(loaded, Mapping):
        return loaded
    if unused := [split for split in loaded if split not in SPLITS]:
        log.warning("%s: split(s) %s of %s are not used", where, listing(unused), name)
    return {split: rows for split, rows in loaded.items() if split in SPLITS}


_TRUE = ("1", "ON", "YES", "TRUE")
"""What `huggingface_hub` takes for yes."""
