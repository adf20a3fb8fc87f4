"""Texts in more than one split: counted exactly in bounded memory, and said with a fix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data import duplicates
from lmrecipes.data.duplicates import DuplicateCounter, duplicate_warnings, shared_rows, text_key
from lmrecipes.data.slices import slices
from lmrecipes.recipe import Source, Task

SPLITS = ("train", "validation", "test")


def test_a_key_is_of_the_text_whatever_case_and_spacing() -> None:
    assert text_key(["A  Text\n"]) == text_key([" a tEXT"]) == text_key(["\ta text"])
    assert text_key(["Straße"]) == text_key(["STRASSE"])
    different = [["a text"], ["atext"], ["a", "text"], ["a text", ""], ["text a"]]
    assert len({text_key(texts) for texts in different}) == len(different)
    assert all(0 <= text_key(texts) < 2**64 for texts in different)


@given(st.text(alphabet=st.sampled_from("aBß \n"), max_size=80))
def test_long_texts_are_read_in_slices(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "slices", lambda text: slices(text, 30))
        if all(part.startswith(" ") for part in list(slices(text, 30))[1:]):
            cut = text_key([text, "b"])
            patch.undo()
            assert cut == text_key([text, "b"])


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30)), min_size=3, max_size=3), st.sampled_from([1, 3, 10**6]))
def test_every_row_of_the_later_split_counts(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], chunk: int
) -> None:
    by_split = dict(zip(SPLITS, texts, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "CHUNK", chunk)
        folder = tmp_path_factory.mktemp("keys")
        counter = DuplicateCounter(folder, SPLITS)
        for split, numbers in by_split.items():
            for number in numbers:
                counter.add(split, [text_key([f"text {number}"])])
        found = counter.count()
    assert list(folder.iterdir()) == []
    assert found == {
        f"{first}/{second}": sum(number in by_split[first] for number in by_split[second])
        for first, second in [("train", "validation"), ("train", "test"), ("validation", "test")]
    }


def test_many_keys_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "CHUNK", 1000)
    keys = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    largest, search = [], np.isin

    def look(second: np.ndarray, first: np.ndarray) -> np.ndarray:
        largest.append(len(second) + len(first))
        return search(second, first)

    monkeypatch.setattr(np, "isin", look)
    found = shared_rows({"train": keys[:15_000], "test": np.concatenate([keys[14_000:], keys[:7]])})
    assert found == {"train/test": 1007}
    assert max(largest) < 1500


@dataclass
class Found:
    task: Task
    counts: dict[str, dict[str, int]]
    duplicates: dict[str, int]


def found(group: str | None = None, **shared: int) -> Found:
    task = Task(kind="regression", source=Source(files="x.jsonl", group=group))
    counts = {"train": {"rows": 20_000}, "validation": {"rows": 500}, "test": {"rows": 2000}}
    return Found(task, counts, {f"train/{split}": rows for split, rows in shared.items()})


def test_warnings_name_the_rows_and_the_fix() -> None:
    tasks = {"clean": found(test=0), "leaks": found(validation=0, test=1500), "grouped": found("who", validation=5)}
    leaks, grouped = duplicate_warnings(tasks)
    assert {problem.severity for problem in (leaks, grouped)} == {"warning"}
    assert leaks.where == "tasks.leaks.source"
    assert leaks.what.startswith("1,500 of 2,000 rows of test (75.0%) stand in train too (")
    assert "tasks.leaks.source.group" in leaks.fix
    assert "5 of 500 rows of validation (1.0%)" in grouped.what
    assert "'who' (tasks.grouped.source.group)" in grouped.fix
    assert duplicate_warnings({}) == []


def test_keys_on_disk_are_removed(tmp_path: Path) -> None:
    counter = DuplicateCounter(tmp_path, SPLITS)
    counter.add("train", [1, 2**64 - 1])
    assert counter.count() == {"train/validation": 0, "train/test": 0, "validation/test": 0}
    assert list(tmp_path.iterdir()) == []
