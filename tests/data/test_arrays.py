"""Arrays that grow on disk are plain `.npy` files in the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lmrecipes.data import arrays
from lmrecipes.data.arrays import GrowingArray, change_in_place, load_mapped


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint8, np.uint64])
@pytest.mark.parametrize("width", [(), (3,)])
@pytest.mark.parametrize("pieces", [[], [0], [5, 0, 1], [12345, 99999]])
def test_pieces_end_to_end(tmp_path: Path, dtype: type, width: tuple[int, ...], pieces: list[int]) -> None:
    parts = [(np.arange(n * 3) % 251).reshape(n, 3)[:, : 3 if width else 1].astype(dtype) for n in pieces]
    array = GrowingArray(tmp_path / "a.npy", dtype, width)
    for part in parts:
        array.append(part if width else part[:, 0])
    array.close()
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == dtype
    assert found.shape == (sum(pieces), *width)
    columns = 3 if width else 1
    assert np.array_equal(found.reshape(-1, columns), np.concatenate([np.zeros((0, columns)), *parts]))


def test_mapped_arrays_are_read_only(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(5))
    found = load_mapped(tmp_path / "a.npy")
    assert found.tolist() == [0, 1, 2, 3, 4]
    assert not found.flags.writeable and not found.flags.owndata


def test_change_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "CHUNK", 4)
    np.save(tmp_path / "a.npy", np.arange(11))
    change_in_place(tmp_path / "a.npy", lambda values: 10 - values)
    assert np.load(tmp_path / "a.npy").tolist() == list(range(10, -1, -1))
