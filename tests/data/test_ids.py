"""Ready token ids: read as they are, checked row by row, without a tokenizer where none is needed."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.data import encode
from lmrecipes.data.conversations import BadRow
from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.ids import IdsRule
from lmrecipes.data.tokenizer import load_tokenizer
from lmrecipes.planning.check import check_data
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe

ROWS = [{"tokens": [i % 7, 3, (2 * i) % 5, i % 10][: 1 + i % 4], "label": "ab"[i % 2]} for i in range(120)]


def recipe_of(
    folder: Path, rows: list[dict[str, Any]] | str, model: dict[str, Any] | None = None, **task: Any
) -> Recipe:
    """One task of ids for a small perceptron-like vocabulary, or for a model in a folder."""
    if not isinstance(rows, str):
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        rows = str(folder / "rows.jsonl")
    source = {"files": rows, "ids": "tokens", **task.pop("source", {})}
    model = model or {"config": {"model_type": "bert", "vocab_size": 10}, "max_length": 4}
    return Recipe.model_validate(
        {"name": "r", "tasks": {"t": {"kind": "classification", "source": source, **task}}, "model": model}
    )


def encoded(*given: Any, **task: Any) -> EncodedTask:
    return encode_tasks(recipe_of(*given, **task), progress=False)["t"]


def texts_of(task: EncodedTask, split: str) -> list[list[int]]:
    part = task.splits[split]
    return [part.tokens[a:b].tolist() for a, b in pairwise(part.offsets.tolist())]


@pytest.fixture(autouse=True)
def _no_tokenizer(no_assets: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """None may be loaded, but where a test says so."""
    if "tiny_gpt" not in request.fixturenames:
        monkeypatch.setattr(encode, "load_tokenizer", lambda *given: pytest.fail("a tokenizer was loaded"))


def test_ids_are_the_texts(tmp_path: Path) -> None:
    task = encoded(tmp_path, ROWS)
    found = [text for split in task.splits for text in texts_of(task, split)]
    assert sorted(found) == sorted(row["tokens"] for row in ROWS)
    assert task.labels == ("a", "b")
    held = {split: {tuple(text) for text in texts_of(task, split)} for split in task.splits}
    assert not held["train"] & held["test"], "equal ids share a split, as equal texts do"
    assert sum(task.duplicates.values()) == 0


def test_parquet_functions_and_lists_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    (tmp_path / "ids_source.py").write_text(
        "import numpy as np\nimport json\n"
        f"def rows():\n    return [dict(row, tokens=np.array(row['tokens'], np.uint8)) for row in {ROWS!r}]\n"
    )
    monkeypatch.chdir(tmp_path)
    wanted = encoded(tmp_path, ROWS)
    called = recipe_of(tmp_path, "rows.jsonl", source={"files": None, "function": "ids_source:rows"})
    for found in (encoded(tmp_path, "rows.parquet"), encode_tasks(called, progress=False)["t"]):
        for split in wanted.splits:
            assert texts_of(found, split) == texts_of(wanted, split)
            assert np.array_equal(found.splits[split].targets, wanted.splits[split].targets)


def test_long_rows_are_cut_and_counted(tmp_path: Path) -> None:
    model = {"config": {"model_type": "bert", "vocab_size": 10}, "max_length": 8}
    task = encoded(tmp_path, ROWS, model, max_length=2)
    wanted = [row["tokens"][:2] for row in ROWS]
    assert sorted(text for split in task.splits for text in texts_of(task, split)) == sorted(wanted)
    assert sum(count["truncated"] for count in task.counts.values()) == sum(len(row["tokens"]) > 2 for row in ROWS)


def test_the_cache_follows_the_vocabulary_and_the_columns(tmp_path: Path) -> None:
    first, rows = encoded(tmp_path, ROWS), str(tmp_path / "rows.jsonl")
    assert encoded(tmp_path, rows).train.folder == first.train.folder
    larger = {"config": {"model_type": "bert", "vocab_size": 11}, "max_length": 4}
    assert encoded(tmp_path, rows, larger).train.folder != first.train.folder, "what is in range changed"
    assert encoded(tmp_path, rows, max_length=3).train.folder != first.train.folder


MLP = {"mlp": {"hidden": [4], "inputs": 3, "levels": 10}}


@pytest.mark.parametrize(
    ("cell", "model", "said"),
    [
        ([1, 10], None, "'tokens' holds 10, ids of this model run from 0 to 9"),
        ([-1], None, "'tokens' holds -1, ids of this model"),
        ([2**40], None, "holds 1099511627776"),
        ([], None, "'tokens' is empty"),
        (None, None, "'tokens' is missing"),
        ([1.0, 2.5], None, "is [1.0, 2.5], not a list of integers"),
        ([1, None], None, "not a list of integers"),
        ([True, False], None, "not a list of integers"),
        (["1"], None, "not a list of integers"),
        ([[1], [2]], None, "not a list of integers"),
        ([[1], [2, 3]], None, "not a list of integers"),
        (7, None, "is 7, not a list of integers"),
        ("1 2 3", None, "is '1 2 3', not a list of integers"),
        ([1, 2], MLP, "holds 2 values, the model reads exactly 3"),
        ([1, 2, 3, 4], MLP, "holds 4 values, the model reads exactly 3"),
    ],
)
def test_bad_rows_are_named(cell: Any, model: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    rows = [{**row, "tokens": [1, 2, 3]} if model else row for row in ROWS]
    rows = [{**row, "tokens": [i % 10, i // 10 % 10, 3] if model else row["tokens"]} for i, row in enumerate(rows)]
    rows[5] = {**rows[5], "tokens": cell}
    recipe = recipe_of(tmp_path, rows, model)
    for problems in (check_data(recipe), _raised(recipe)):
        (problem,) = [problem for problem in problems if problem.severity == "error"]
        assert (problem.where, problem.id) == ("tasks.t.source", "bad-rows")
        assert "rows.jsonl line 6" in problem.what
        assert said in problem.what
    kept = encoded(tmp_path, rows, model, source={"on_bad_row": "skip"})
    assert kept.skipped == 1


def _raised(recipe: Recipe) -> list[Any]:
    with pytest.raises(InputError) as caught:
        encode_tasks(recipe, progress=False)
    return caught.value.problems


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (problem,) = _raised(recipe_of(tmp_path, ROWS, source={"ids": "token"}))
    assert problem.where == "tasks.t.source.ids"
    assert "Did you mean `tokens`?" in problem.what


@given(st.lists(st.integers(-(2**66), 2**66), max_size=9), st.integers(1, 60), st.none() | st.integers(1, 9))
def test_what_is_read_is_in_range_and_as_it_was(cell: list[int], vocabulary: int, exactly: int | None) -> None:
    try:
        found = IdsRule("c", vocabulary, exactly)(cell)
    except BadRow:
        fits = cell and all(0 <= one < vocabulary for one in cell) and exactly in (None, len(cell))
        assert not fits
    else:
        assert found.dtype == np.int32
        assert found.tolist() == cell
        assert 0 <= min(cell) <= max(cell) < vocabulary


def test_documents_of_ids_are_predicted_once(tiny_gpt: Path, tmp_path: Path) -> None:
    model = {"pretrained": str(tiny_gpt / "model"), "max_length": 4}
    tokenizer = load_tokenizer(str(tiny_gpt / "model"))
    documents = [[(7 * i + j) % len(tokenizer) for j in range(2 + i % 9)] for i in range(80)]
    rows = [{"tokens": document} for document in documents]
    task = encoded(tmp_path, rows, model, kind="language_modelling")
    pieces = sorted(text for split in task.splits for text in texts_of(task, split))
    wanted = sorted(document[a : a + 4] for document in documents for a in range(0, len(document) - 1, 3))
    assert pieces == wanted, "each text begins with the last id of the one before; nothing is added"
    assert sum(count["supervised"] for count in task.counts.values()) == sum(len(d) - 1 for d in documents)
    assert sum(count["documents"] for count in task.counts.values()) == len(documents)
    assert task.unigram is not None
    assert 0 < task.unigram < math.log(len(tokenizer))
    part = task.train
    said = [len(tokenizer.decode(text[1:], skip_special_tokens=True).encode()) for text in texts_of(task, "train")]
    assert part.targets.tolist() == said
    (problem,) = _raised(recipe_of(tmp_path, [*rows, {"tokens": [1]}], model, kind="language_modelling"))
    assert "holds 1 id(s), the loss needs 2 or more" in problem.what


@pytest.mark.parametrize(
    ("task", "model", "said"),
    [
        ({"kind": "chat"}, {}, "ids alone do not show"),
        ({"source": {"text_pair": "y"}}, {}, "rows are read from the ids in the column 'tokens'"),
        ({"source": {"text": "y"}}, {}, "rows are read from the ids in the column 'tokens'"),
        ({}, {"initialization": "scratch", "tokenizer_vocabulary": 512}, "ids of another tokenizer than the one"),
    ],
)
def test_what_does_not_go_with_ids(task: dict[str, Any], model: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        recipe_of(tmp_path, "x.jsonl", {"max_length": 8, **model}, **task)


def test_a_configuration_without_tokenizer_reads_ids_alone() -> None:
    task = {"kind": "regression", "source": {"files": "x.jsonl"}}
    content = {"name": "r", "tasks": {"t": task}, "model": {"config": {"model_type": "bert", "vocab_size": 10}}}
    with pytest.raises(ValueError, match="needed by t"):
        Recipe.model_validate(content)
