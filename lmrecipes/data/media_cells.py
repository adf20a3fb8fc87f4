"""Cells that hold an image or a clip: whether there is one, and the bytes of its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.conversations import BadRow
from lmrecipes.data.labels import missing, short

MOST_BYTES = 2**28
"""Larger files are no image or clip that anyone trains on."""


class ReadMedia(NamedTuple):
    """An image or a clip as the front end reads it, and a hash of the content that it was read from, which does not
    depend on the model."""

    values: NDArray[Any]
    digest: str


Read = Callable[[Any, Path | None], ReadMedia]
"""A cell, and the folder that relative paths start from (None: paths are refused). Raises BadRow."""


def lacks(cell: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, an empty text, or a dictionary of such cells."""
    if isinstance(cell, Mapping):
        return all(lacks(part) for key, part in cell.items() if key != "sampling_rate")
    return missing(cell) or (isinstance(cell, str) and not cell.strip())


def file_bytes(cell: Any, column: str, folder: Path | None) -> bytes:
    """The bytes of the file that a cell holds or names: bytes, a path, or {bytes, path}. Raises BadRow."""
    if isinstance(cell, Mapping):
        cell = cell.get("path") if lacks(cell.get("bytes")) else cell["bytes"]
    if isinstance(cell, (bytes, bytearray, memoryview)):
        return bytes(cell)
    if not isinstance(cell, (str, os.PathLike)):
        raise BadRow(f"{column!r} is {short(cell)}, neither a path nor the bytes of a file")
    if folder is None:
        raise BadRow(f"{column!r} is {short(cell)}, and paths are not read here: give the bytes of the file")
    path = folder / Path(cell).expanduser()
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise BadRow(f"{column!r}: {path} has {size:,} bytes, more than {MOST_BYTES:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise BadRow(f"{column!r}: {path} cannot be read ({reason})") from None


def digest(*parts: bytes | str) -> str:
    """A hash of some content."""
    found = hashlib.blake2b(digest_size=16)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()


def array_digest(values: NDArray[Any]) -> str:
    """A hash of an array's shape, type and content."""
    return digest(f"{values.shape} {values.dtype.str}", np.ascontiguousarray(values).tobytes())
