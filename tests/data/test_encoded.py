"""Reading encoded data: any rows' lengths, and samples that depend on nothing but the split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data import encoded
from lmrecipes.data.encoded import EncodedSplit
from lmrecipes.data.permutation import hash_key, hash_uniform


def split_of(folder: Path, lengths: list[int], name: str = "test") -> EncodedSplit:
    np.save(folder / f"{name}.offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    return EncodedSplit(folder, name)


def test_lengths_of_any_rows(tmp_path: Path) -> None:
    split = split_of(tmp_path, [3, 1, 4, 1, 5])
    assert len(split) == 5
    assert split.lengths.tolist() == [3, 1, 4, 1, 5]
    found = split.lengths_of(np.array([4, 0, 0, 2]))
    assert found.tolist() == [5, 3, 3, 4]
    assert found.dtype == np.int64
    assert split.lengths_of(np.zeros(0, np.int64)).tolist() == []


def test_supervised_tokens(tmp_path: Path) -> None:
    split = split_of(tmp_path, [3, 1, 4])
    assert split.supervised_of(np.array([2, 2])).tolist() == [1, 1]
    np.save(tmp_path / "test.supervised.npy", np.array([2, 0, 4], np.int32))
    found = EncodedSplit(tmp_path, "test").supervised_of(np.array([2, 0, 1]))
    assert found.tolist() == [4, 2, 0]
    assert found.dtype == np.int64


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(1, 320), st.integers(1, 60))
def test_a_sample_is_the_rows_of_smallest_hash(
    tmp_path_factory: pytest.TempPathFactory, rows: int, most: int, at_once: int
) -> None:
    split = split_of(tmp_path_factory.mktemp("split"), [1] * rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "SAMPLED_AT_ONCE", at_once)
        found = split.sample(most, "evaluation")
    hashes = hash_uniform(hash_key("evaluation", "test"), np.arange(rows))
    assert found.tolist() == sorted(np.argsort(hashes, kind="stable")[:most].tolist())
    assert found.dtype == np.int64


def test_equal_hashes_go_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "hash_uniform", lambda key, rows: np.round(hash_uniform(key, rows), 1))
    split = split_of(tmp_path, [1] * 100)
    whole = split.sample(30, "x")
    monkeypatch.setattr(encoded, "SAMPLED_AT_ONCE", 7)
    assert np.array_equal(split.sample(30, "x"), whole)


def test_a_sample_is_the_same_for_all_but_the_purpose(tmp_path: Path) -> None:
    test = split_of(tmp_path, [1] * 30)
    rows = test.sample(10, "evaluation")
    assert len(rows) == 10
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert set(rows) < set(test.sample(11, "evaluation")), "more rows are the same and others"
    assert not np.array_equal(rows, test.sample(10, "calibration"))
    assert not np.array_equal(rows, split_of(tmp_path, [1] * 30, "train").sample(10, "evaluation"))
    assert test.sample(None, "evaluation").tolist() == test.sample(10_000, "x").tolist() == list(range(30))
