"""Sources -> rows. Reads the columns that a task needs from files, `datasets`, a function or the offline data."""

from __future__ import annotations

import glob
import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Source, Task

SPLITS = ("train", "validation", "test")
WHOLE = "all"
"""Name of the rows of a source that has no splits of its own."""


@dataclass
class Rows:
    """The needed columns of one split; `origin[i]` tells a person where row i stands."""

    texts: list[Any] = field(default_factory=list)
    pairs: list[Any] | None = None
    labels: list[Any] = field(default_factory=list)
    groups: list[Any] | None = None
    origin: Callable[[int], str] = lambda i: f"row {i}"

    def __len__(self) -> int:
        return len(self.texts)


def read_rows(name: str, task: Task) -> dict[str, Rows]:
    """Rows of a task by split (`all` where the source has none). Raises InputError naming file, column and fix."""
    source, where = task.source, f"tasks.{name}.source"
    if source.files is not None:
        return {WHOLE: _read_files(source.files, source, f"{where}.files")}
    if source.splits is not None:
        return {split: _read_files(path, source, f"{where}.splits.{split}") for split, path in source.splits.items()}
    if source.offline is not None:
        from lmrecipes.data import offline

        if source.offline not in offline.OFFLINE:
            raise InputError(
                Problem(
                    f"{where}.offline",
                    f"{source.offline!r} is not one of the offline data sets.{did_you_mean(source.offline, offline.OFFLINE)}",
                    f"use one of {listing(list(offline.OFFLINE))}",
                    "source-unknown",
                )
            )
        return {WHOLE: _from_dicts(offline.load(source.offline), source, where, source.offline)}
    if source.function is not None:
        return _by_split(_call(source.function, f"{where}.function"), source, where, source.function)
    assert source.dataset is not None
    return _by_split(_load_dataset(source.dataset, f"{where}.dataset"), source, where, source.dataset)


def source_state(source: Source) -> list[Any]:
    """What changes when the data changes: part of the encoded data's fingerprint."""
    paths = [source.files] if source.files else list((source.splits or {}).values())
    if source.dataset and Path(source.dataset).is_dir():
        paths = [str(Path(source.dataset) / "**")]
    if source.function:
        module = importlib.util.find_spec(source.function.partition(":")[0])
        paths = [module.origin] if module and module.origin else []
    state: list[Any] = [source.model_dump(mode="json")]
    for path in sorted(p for pattern in paths for p in (glob.glob(pattern, recursive=True) or [pattern])):
        if os.path.isfile(path):
            status = os.stat(path)
            state.append([os.path.abspath(path), status.st_size, status.st_mtime_ns])
    if source.offline:
        from lmrecipes.data import offline

        state.append(offline.version(source.offline))
    return state


def _read_files(pattern: str, source: Source, where: str) -> Rows:
    paths = sorted(glob.glob(pattern)) if glob.has_magic(pattern) else [pattern]
    paths = [path for path in paths if Path(path).is_file()]
    if not paths:
        folder = Path(pattern).parent
        near = did_you_mean(Path(pattern).name, [p.name for p in folder.iterdir()]) if folder.is_dir() else ""
        raise InputError(
            Problem(
                where,
                f"no file {pattern!r} (relative to {Path.cwd()}).{near}",
                "give the path of a file",
                "file-missing",
            )
        )
    rows = Rows(pairs=[] if source.text_pair else None, groups=[] if source.group else None)
    starts: list[tuple[int, str, int]] = []
    for path in paths:
        reader, first = _READERS.get(Path(path).suffix.lower(), (None, 0))
        if reader is None:
            raise InputError(
                Problem(
                    where,
                    f"{path}: the format of {Path(path).suffix or 'a file without a suffix'} is unknown",
                    f"use one of {listing(sorted(_READERS))}",
                    "file-format",
                )
            )
        starts.append((len(rows), path, first))
        _extend(rows, reader(Path(path), source, where), source, where, path)

    def origin(i: int) -> str:
        start, path, first = next(s for s in reversed(starts) if s[0] <= i)
        return f"{path} line {i - start + first}" if first else f"{path} row {i - start}"

    rows.origin = origin
    return rows


def _columns_of(source: Source) -> dict[str, str]:
    wanted = {"text": source.text, "label": source.label}
    if source.text_pair:
        wanted["text_pair"] = source.text_pair
    if source.group:
        wanted["group"] = source.group
    return wanted


def _require_columns(found: Iterable[str], source: Source, where: str, path: str) -> None:
    names = list(found)
    base = where.split(".source")[0] + ".source"
    problems = [
        Problem(
            f"{base}.{role}",
            f"{path} has no column {column!r}; it has {listing(names)}.{did_you_mean(column, names)}",
            f"set {base}.{role} to a column of the file",
            "column-missing",
        )
        for role, column in _columns_of(source).items()
        if column not in names
    ]
    if problems:
        raise InputError(problems)


def _extend(rows: Rows, columns: Mapping[str, list[Any]], source: Source, where: str, path: str) -> None:
    _require_columns(columns, source, where, path)
    rows.texts.extend(columns[source.text])
    rows.labels.extend(columns[source.label])
    if rows.pairs is not None and source.text_pair:
        rows.pairs.extend(columns[source.text_pair])
    if rows.groups is not None and source.group:
        rows.groups.extend(columns[source.group])


def _read_jsonl(path: Path, source: Source, where: str) -> dict[str, list[Any]]:
    wanted = list(_columns_of(source).values())
    columns: dict[str, list[Any]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
            except ValueError as error:
                fix = (
                    "one JSON object a line"
                    if number > 1 or not line.startswith("[")
                    else "this is a JSON array; write one object a line"
                )
                raise InputError(Problem(where, f"{path} line {number}: {error}", fix, "file-broken")) from None
            if not columns:
                _require_columns(row, source, where, str(path))
                columns = {column: [] for column in wanted}
            for column in wanted:
                columns[column].append(row.get(column))
    return columns or {column: [] for column in wanted}


def _read_csv(path: Path, source: Source, where: str) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import csv

    text_columns = [c for c in (source.text, source.text_pair, source.group) if c]
    try:
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ",", newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types={c: pa.string() for c in text_columns}, null_values=[""], strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid as error:
        if path.stat().st_size == 0:
            return {column: [] for column in _columns_of(source).values()}
        raise InputError(Problem(where, f"{path}: {error}", "repair the file", "file-broken")) from None
    _require_columns(table.column_names, source, where, str(path))
    return {column: table[column].to_pylist() for column in _columns_of(source).values()}


def _read_parquet(path: Path, source: Source, where: str) -> dict[str, list[Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _require_columns(file.schema_arrow.names, source, where, str(path))
        table = file.read(columns=list(dict.fromkeys(_columns_of(source).values())))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(Problem(where, f"{path}: {error}", "repair the file", "file-broken")) from None
    return {column: table[column].to_pylist() for column in table.column_names}


_READERS: dict[str, tuple[Callable[[Path, Source, str], dict[str, list[Any]]], int]] = {
    ".jsonl": (_read_jsonl, 1),
    ".csv": (_read_csv, 2),
    ".tsv": (_read_csv, 2),
    ".parquet": (_read_parquet, 0),
}
"""Reader of each suffix, and the line number of its first row (0: rows are counted)."""


def _from_dicts(dicts: Iterable[Mapping[str, Any]], source: Source, where: str, title: str) -> Rows:
    columns: dict[str, list[Any]] = {column: [] for column in _columns_of(source).values()}
    first = True
    for row in dicts:
        if first:
            _require_columns(row, source, where, title)
            first = False
        for column, values in columns.items():
            values.append(row.get(column))
    rows = Rows(pairs=[] if source.text_pair else None, groups=[] if source.group else None)
    _extend(rows, columns, source, where, title)
    rows.origin = lambda i: f"{title} row {i}"
    return rows


def _by_split(data: Any, source: Source, where: str, title: str) -> dict[str, Rows]:
    if isinstance(data, Mapping):
        known = {split: rows for split, rows in data.items() if split in SPLITS}
        if "train" not in known:
            raise InputError(
                Problem(
                    where,
                    f"{title} has the splits {listing(list(map(str, data)))}",
                    "it needs a `train` split",
                    "split-missing",
                )
            )
        return {split: _from_dicts(rows, source, where, f"{title}[{split}]") for split, rows in known.items()}
    return {WHOLE: _from_dicts(data, source, where, title)}


def _call(dotted: str, where: str) -> Any:
    module_name, _, attribute = dotted.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            Problem(
                where,
                f"{dotted!r} cannot be imported ({error})",
                "write `module:function` of an importable module",
                "function-missing",
            )
        ) from None
    return function()


def _load_dataset(name: str, where: str) -> Any:
    """A `datasets` name or a local folder, as {split: iterable of rows}."""
    import datasets

    path, _, config = name.partition(":")
    try:
        if Path(path).is_dir():
            folder = Path(path)
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                loaded = datasets.load_from_disk(path)
            else:
                loaded = datasets.load_dataset(path)
        else:
            loaded = datasets.load_dataset(path, config or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            Problem(
                where,
                f"{name!r} could not be loaded ({reason})",
                "check the name and the network, or use local files",
                "dataset-missing",
            )
        ) from None
    return dict(loaded) if isinstance(loaded, Mapping) else loaded
