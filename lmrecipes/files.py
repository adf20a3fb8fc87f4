"""Files that are either the old one or the new one, never a part of it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_text_atomically(path: Path, text: str) -> None:
    """Write `text` (UTF-8) to `path`: under a temporary name in the same folder, synced, then renamed.

    A reader, or a crash at any moment, sees the former file or the whole new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Writers never share a temporary name. Unlike mkstemp, open gives it the permissions of any new file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` (a rename, a new file) survive a crash, where the file system can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush all files and folders in `folder`, and itself, so that a rename of it cannot reach the disk before them."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(path) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def link_or_copy(source: str, target: str) -> None:
    """A hard link, which takes no room; a copy where the file system has none. For `shutil.copytree`."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def written_at_once(folder: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `folder` if no error comes. The caller holds a lock of the folder's.

    What a killed process left is no one's, and removed first.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` as indented JSON, atomically. NaN and infinity become null: JSON has no word for them."""
    write_text_atomically(path, json_text(obj, indent=2) + "\n")


def json_text(obj: Any, indent: int | None = None) -> str:
    """`obj` as valid JSON: NaN and infinity as null; numpy and torch scalars, paths, tuples and sets are understood."""
    return json.dumps(_json_ready(obj), indent=indent, allow_nan=False, ensure_ascii=False)


def _json_ready(obj: Any) -> Any:
    if isinstance(obj, str | bool | int) or obj is None:
        return obj
    if isinstance(obj, float):
        return float(obj) if math.isfinite(obj) else None
    if isinstance(obj, Mapping):
        return {str(key): _json_ready(value) for key, value in obj.items()}
    if isinstance(obj, set | frozenset):
        return [_json_ready(value) for value in sorted(obj, key=str)]
    if isinstance(obj, list | tuple):
        return [_json_ready(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return str(obj)
    if hasattr(obj, "tolist"):  # numpy and torch, scalars and arrays alike
        return _json_ready(obj.tolist())
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON")
