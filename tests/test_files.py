"""What reaches the disk, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lmrecipes.files import sync_tree


def test_every_file_is_synced_before_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    for name in ("top", "a/one", "a/deep/two"):
        (tmp_path / name).write_text("x")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").readlink()))
    sync_tree(tmp_path)
    assert sorted(synced) == sorted([tmp_path, *tmp_path.rglob("*")])
    assert all(synced.index(path) < synced.index(path.parent) for path in tmp_path.rglob("*"))
