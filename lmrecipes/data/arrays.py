"""Arrays on disk that grow: `.npy` files written piece by piece, in memory only as large as a piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK = 2**22
"""Elements that are read, changed and written at once."""


class GrowingArray:
    """A `.npy` file that grows along its first axis; readable after `close`. width: the other axes."""

    def __init__(self, path: Path, dtype: DTypeLike, width: tuple[int, ...] = ()) -> None:
        self.path, self.dtype, self.width = path, np.dtype(dtype), width
        self.rows = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        """Add rows at the end."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self.rows += len(values)

    def close(self) -> None:
        """Say in the header how many rows there are."""
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header so that the first axis can grow in place.
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (self.rows, *self.width)}
        np.lib.format.write_array_header_1_0(self._file, header)


def load_mapped(path: Path) -> NDArray[Any]:
    """A `.npy` file as a read-only array in mapped memory: pages are read when used, and given back under pressure."""
    return np.asarray(np.load(path, mmap_mode="r"))  # slices faster than memmap


def change_in_place(path: Path, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
    """Apply an elementwise function to a `.npy` file, chunk by chunk."""
    whole = np.load(path, mmap_mode="r+")
    for start in range(0, len(whole), CHUNK):
        whole[start : start + CHUNK] = change(whole[start : start + CHUNK])
    whole.flush()
