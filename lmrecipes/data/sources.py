"""Sources -> streams of rows: of files, `datasets`, a function or the offline data, the columns that a task needs."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from lmrecipes.data.columns import Wanted
from lmrecipes.data.row_files import matching, open_files
from lmrecipes.data.rows import Rows, RowStream, in_blocks, rows_of_a_block
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import Source, Task

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
WHOLE = "all"
"""Name of the rows of a source that has no splits of its own."""


def open_rows(name: str, task: Task) -> dict[str, RowStream]:
    """The rows of a task by split (`all` where the source has none), to be read once.

    The first block of each split is read here, so that most mistakes show before the work begins. Raises InputError
    naming file, column and fix; so does reading on.
    """
    where = f"tasks.{name}.source"
    by_split = {split: _begun(stream) for split, stream in _open(Wanted(task, where)).items()}
    if empty := [split for split, stream in by_split.items() if stream is None]:
        what = "has no rows" if empty == [WHOLE] else f"has no rows in the split(s) {', '.join(empty)}"
        raise InputError(Problem(where, what, "give a source that has some", "source-empty"))
    return {split: stream for split, stream in by_split.items() if stream is not None}


def _begun(stream: RowStream) -> RowStream | None:
    """The same stream with its first block read; None where there is none."""
    first = next(stream.blocks, None)
    return None if first is None else RowStream(chain([first], stream.blocks), stream.total)


def source_state(source: Source) -> list[Any]:
    """What changes when the data changes: part of the encoded data's fingerprint.

    Files count with path, size and time of change, but not those that rows name. Of a function only its module's file
    is known, of a `datasets` name on the hub only the name.
    """
    patterns = [source.files] if source.files else list((source.splits or {}).values())
    paths = [path for pattern in patterns for path in matching(pattern)]
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


def _open(wanted: Wanted) -> dict[str, RowStream]:
    source, where = wanted.task.source, wanted.where
    if source.files is not None:
        return {WHOLE: open_files(source.files, wanted, f"{where}.files")}
    if source.splits is not None:
        return {split: open_files(path, wanted, f"{where}.splits.{split}") for split, path in source.splits.items()}
    if source.offline is not None:
        return {WHOLE: _from_dicts(_load_offline(source.offline, f"{where}.offline"), wanted, source.offline)}
    if source.function is not None:
        return _by_split(_call(source.function, f"{where}.function"), wanted, source.function)
    assert source.dataset is not None
    return _by_split(_load_dataset(source.dataset, f"{where}.dataset"), wanted, source.dataset)


def _from_dicts(dicts: Iterable[Any], wanted: Wanted, title: str) -> RowStream:
    def checked() -> Iterator[tuple[int, int, Mapping[str, Any]]]:
        for number, row in enumerate(dicts):
            if not isinstance(row, Mapping):
                what = f"{title} row {number} is a {type(row).__name__}, not a dictionary"
                raise InputError(Problem(wanted.where, what, "yield dictionaries of column and value", "row-type"))
            yield number, sum(map(_size, row.values())), row

    total = len(dicts) if isinstance(dicts, Sized) else None
    return RowStream(in_blocks(checked(), wanted, title, lambda number: f"{title} row {number}"), total)


def _size(cell: Any) -> int:
    """Characters of the texts in a cell, also where they are in lists and dictionaries, or bytes; a number and an
    intensity of an image count as one."""
    if isinstance(cell, (str, bytes, bytearray, memoryview)):
        return len(cell)
    if hasattr(cell, "getbands"):  # a Pillow image
        return int(cell.width * cell.height * len(cell.getbands()))
    if isinstance(cell, Mapping):
        return sum(map(_size, cell.values()))
    return sum(map(_size, cell)) if isinstance(cell, (list, tuple)) else int(getattr(cell, "size", 1))


def _from_dataset(dataset: Any, wanted: Wanted, title: str) -> RowStream:
    """Rows of a `datasets.Dataset`, in slices. Where labels are a `ClassLabel`, -1 says that there is none."""
    roles = wanted.among(dataset.column_names, title)
    dataset = _undecoded(dataset, [roles[modality] for modality in wanted.task.source.media])
    table = dataset.with_format(None).select_columns(sorted(set(roles.values())))
    marks_missing = "label" in roles and hasattr(dataset.features[roles["label"]], "names")
    step = rows_of_a_block(table.data.nbytes, table.data.num_rows, wanted)

    def blocks() -> Iterator[Rows]:
        for start in range(0, len(table), step):
            columns = dict(table[start : start + step])
            if marks_missing:
                labels = columns[roles["label"]]
                columns[roles["label"]] = [None if label == -1 else label for label in labels]
            numbers = range(start, min(start + step, len(table)))
            yield Rows.of(columns, roles, numbers, lambda number: f"{title} row {number}")

    return RowStream(blocks(), len(table))


def _undecoded(dataset: Any, columns: list[str]) -> Any:
    """The same `datasets.Dataset`, whose images and clips stay the files' bytes and paths."""
    for column in columns:
        feature = dataset.features[column]
        if getattr(feature, "decode", False):
            dataset = dataset.cast_column(column, replace(feature, decode=False))
    return dataset


def _by_split(data: Any, wanted: Wanted, title: str) -> dict[str, RowStream]:
    """Rows of a dictionary of splits, or of one iterable of rows or `Dataset`."""
    where = wanted.where

    def rows(part: Any, title: str) -> RowStream:
        read = _from_dataset if hasattr(part, "select_columns") and hasattr(part, "__len__") else _from_dicts
        return read(part, wanted, title)

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
