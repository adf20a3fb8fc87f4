"""Rows in, values out: as evaluation has them, in the rows' order, in every precision."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import WORDS
from tiny_run import make_run

from lmrecipes.combine.combination import Blend, write_combination
from lmrecipes.data.encode import task_texts
from lmrecipes.inference.own_tasks import outputs_of, tasks_of
from lmrecipes.inference.row_predictor import Columns, RowsRefused, answers, open_predictor
from lmrecipes.models.heads import HeadSpec
from lmrecipes.problems import InputError
from lmrecipes.recipe_files import recipe_from_yaml
from lmrecipes.run_folder import RunFolder

TASKS = ["short", "long", "rare"]


def some_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))} for _ in range(count)]


def all_test_rows(run: RunFolder, task: str) -> list[dict[str, str]]:
    """In the order of the split."""
    return [{"text": text} for text in task_texts(recipe_from_yaml(run.recipe))[task].splits["test"].texts]


@pytest.mark.parametrize("task", TASKS)
def test_values_are_those_of_evaluate(made: RunFolder, task: str) -> None:
    wanted = outputs_of(made, tasks_of(made, task))[task]
    rows = all_test_rows(made, task)
    assert len(rows) == len(wanted.rows)
    np.testing.assert_array_equal(open_predictor(made).predict(rows, [task])[task], wanted.values)


def test_order_is_kept_and_neighbours_do_not_matter(made: RunFolder) -> None:
    predictor, rows = open_predictor(made, "fp32", batch=4), some_rows(21)
    together = predictor.predict(rows, TASKS)
    assert {task: values.shape for task, values in together.items()} == {
        "short": (21,), "long": (21, 3), "rare": (21, 3),
    }  # fmt: skip
    for task in TASKS:
        alone = np.concatenate([predictor.predict([row], [task])[task] for row in rows])
        np.testing.assert_allclose(together[task], alone, rtol=1e-4, atol=1e-4)
        assert len(np.unique(together[task].round(3), axis=0)) > 10  # rows do differ
    assert {task: values.shape for task, values in predictor.predict([], TASKS).items()} == {
        "short": (0,), "long": (0, 3), "rare": (0, 3),
    }  # fmt: skip


def test_texts_are_cut_as_in_training(made: RunFolder) -> None:
    predictor, words = open_predictor(made, "fp32"), WORDS * 3
    short, long, cut = ({"text": " ".join(words[:n])} for n in (45, 80, 46))
    values = predictor.predict([short, long, cut], ["short"])["short"]
    assert values[1] == pytest.approx(values[2], rel=1e-4) and values[0] != pytest.approx(values[1], rel=1e-4)


def test_bf16_holds_half_the_bytes_and_nearly_agrees(made: RunFolder) -> None:
    fp32, bf16 = open_predictor(made, "fp32"), open_predictor(made, "bf16")
    assert 0.45 < bf16.bytes / fp32.bytes < 0.6
    assert (fp32.kind, bf16.kind) == ("torch, fp32", "torch, bf16")
    rows = some_rows(8)
    one, other = (predictor.predict(rows, ["long"])["long"] for predictor in (fp32, bf16))
    assert 0 < np.abs(one - other).max() < 0.1 * np.abs(one).max()


def test_threads_are_torchs(made: RunFolder) -> None:
    before = torch.get_num_threads()
    try:
        open_predictor(made, threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_every_bad_row_is_named(made: RunFolder) -> None:
    rows = [{"text": "good"}, {"text": ""}, {"other": "x"}, {"text": 3}, {"text": "fine"}]
    with pytest.raises(RowsRefused) as refused:
        open_predictor(made).predict(rows, ["long"])
    assert set(refused.value.rows) == {1, 2, 3}
    assert "empty" in refused.value.rows[1] and "'text'" in refused.value.rows[2]
    assert refused.value.problems[0].where == "row 1"


def test_precisions_that_there_are_not(made: RunFolder) -> None:
    with pytest.raises(InputError, match="loss scale"):
        open_predictor(made, "fp16")  # type: ignore[arg-type]


def test_a_pair_is_read_as_one(tiny: Path, tmp_path: Path) -> None:
    run = make_run(tiny, tmp_path / "run", **{"tasks.long.source.text_pair": "text"})
    predictor = open_predictor(run, "fp32")
    assert predictor.columns("long") == Columns(text="text", text_pair="text")
    alone = predictor.predict([{"text": "good bad"}], ["long", "short"])
    wanted = outputs_of(run, tasks_of(run, "long"))["long"].values
    np.testing.assert_array_equal(open_predictor(run).predict(all_test_rows(run, "long"), ["long"])["long"], wanted)
    assert alone["long"].shape == (1, 3) and alone["short"].shape == (1,)


def combine(folder: Path, runs: list[RunFolder], weights: tuple[float, ...]) -> RunFolder:
    combined = RunFolder(folder)
    for number, run in enumerate(runs):
        member = combined.model / "members" / str(number)
        shutil.copytree(run.model, member / "model")
        shutil.copy(run.recipe, member / "recipe.yaml")
    shutil.copy(runs[0].recipe, combined.recipe)
    specs = open_predictor(runs[0]).specs
    blends = {task: Blend(weights) for task in TASKS}
    write_combination(combined.model, "average", [run.path.name for run in runs], blends, specs)
    return combined


def test_a_combination_asks_every_member(made: RunFolder, tiny: Path, tmp_path: Path) -> None:
    other = make_run(tiny, tmp_path / "other", seed=7)
    combined = combine(tmp_path / "both", [made, other], (0.25, 0.75))
    rows = some_rows(5)
    found = open_predictor(combined).predict(rows, TASKS)
    parts = [open_predictor(run).predict(rows, TASKS) for run in (made, other)]
    np.testing.assert_allclose(found["short"], 0.25 * parts[0]["short"] + 0.75 * parts[1]["short"], rtol=1e-5)
    shares = [np.exp(part["long"]) / np.exp(part["long"]).sum(1, keepdims=True) for part in parts]
    np.testing.assert_allclose(np.exp(found["long"]), 0.25 * shares[0] + 0.75 * shares[1], rtol=1e-4)
    assert open_predictor(combined).kind == "2 models: torch, fp32"


def test_answers() -> None:
    labels = ("a", "b", "c")
    classes = HeadSpec("classification", labels, (0.0,) * 3, 1.0)
    values = np.log(np.array([[0.2, 0.5, 0.3]], np.float32))
    assert answers(classes, values) == [{"label": "b", "probability": pytest.approx(0.5)}]
    assert answers(classes, values, True)[0]["probabilities"] == pytest.approx({"a": 0.2, "b": 0.5, "c": 0.3})
    several = HeadSpec("multi_label", labels, (0.0,) * 3, 1.0)
    values = np.array([[0.0, 2.0, -1.0], [-1.0, -1.0, -1.0]], np.float32)
    first, none = answers(several, values)
    assert first == {"labels": ["b"], "probabilities": [pytest.approx(0.8808, abs=1e-4)]}
    assert none == {"labels": [], "probabilities": []}
    assert set(answers(several, values, True)[1]["probabilities"]) == set(labels)
    number = HeadSpec("regression", (), (0.0,), 1.0)
    assert json.dumps(answers(number, np.array([1.5], np.float32))) == '[{"value": 1.5}]'
