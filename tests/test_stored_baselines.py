"""`lmrecipes train --baselines`: measured once, kept beside the recipe, shown with their date where they apply."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from own_run import LMRECIPES
from tiny import make_recipe

from lmrecipes.recipe_files import find_recipe
from lmrecipes.results import finish_run, print_results, read_evaluation, run_recipe, stored_baselines
from lmrecipes.run_folder import RunFolder, write_recipe

RECIPE = '''"""A tiny recipe."""
import json
from pathlib import Path

from lmrecipes.launching import main
from lmrecipes.recipe import Recipe


def recipe() -> Recipe:
    """Three small tasks."""
    return Recipe.model_validate(json.loads(Path(__file__).with_name("fields.json").read_text()))


if __name__ == "__main__":
    main(recipe)
'''


@pytest.fixture(scope="module")
def measured(tiny: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    """A user's folder with a recipe and a run of it that measured the baselines."""
    folder = tmp_path_factory.mktemp("baselines")
    recipe = folder / "recipes" / "tiny" / "recipe.py"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(RECIPE)
    (recipe.parent / "fields.json").write_text(json.dumps(make_recipe(tiny, **{"schedule.steps": 3})))
    done = run(LMRECIPES, "train", "tiny", "--processes", "1", "--run-folder", "runs/tiny", "--baselines", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "measured" not in json.dumps(json.loads((recipe.parent / "baselines.json").read_text()))
    return folder


def test_baselines_stand_beside_the_results(measured: Path) -> None:
    evaluation = read_evaluation(RunFolder(measured / "runs" / "tiny"))
    assert list(evaluation["baselines"]) == ["tfidf_linear", "scratch"]
    for baseline in evaluation["baselines"].values():
        assert baseline["date"] == time.strftime("%Y-%m-%d")
        for task, scores in evaluation["tasks"].items():
            assert set(baseline["tasks"][task]) == set(scores["metrics"])
    scratch = RunFolder(measured / "runs" / "tiny" / "baselines" / "scratch")
    assert run_recipe(scratch).model.initialization == "scratch"
    assert read_evaluation(scratch)["tasks"]["long"]["metrics"] == evaluation["baselines"]["scratch"]["tasks"]["long"]


def test_a_later_run_shows_them_as_stored(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(measured)
    monkeypatch.setenv("COLUMNS", "80")
    first = RunFolder(measured / "runs" / "tiny")
    later = RunFolder(tmp_path / "later")
    later.path.mkdir()
    write_recipe(later, run_recipe(first))
    for name in ("environment.json", "metrics.jsonl"):
        (later.path / name).write_text((first.path / name).read_text())
    evaluation = {key: value for key, value in read_evaluation(first).items() if key != "baselines"}
    later.evaluation.write_text(json.dumps({**evaluation, "run": "later"}))
    finish_run(later, find_recipe("tiny"))
    out = capsys.readouterr().out
    assert "TF-IDF + linear: stored, 20" in " ".join(out.split())
    assert out.splitlines()[0].startswith("later, test split, after step 3")
    assert f"report: {later.report}" in out
    assert read_evaluation(later)["baselines"]["scratch"]["measured"] == "stored"


@pytest.mark.parametrize(
    ("changes", "applies"),
    [
        ({}, ["tfidf_linear", "scratch"]),
        ({"tracking.log_every": 5, "description": "x", "precision.compute": "bf16"}, ["tfidf_linear", "scratch"]),
        ({"optimizer.lr": 0.001}, ["tfidf_linear"]),
        ({"batch.examples": 32}, ["tfidf_linear"]),
        ({"tasks.long.source.test_fraction": 0.2}, []),
        ({"evaluation.examples": 10}, []),
        ({"schedule.steps": 4}, ["tfidf_linear"]),
    ],
)
def test_only_baselines_that_still_apply(
    measured: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], applies: list[str]
) -> None:
    monkeypatch.chdir(measured)
    file = find_recipe("tiny")
    fields = file.path.with_name("fields.json")
    before = fields.read_text()
    fields.write_text(json.dumps(make_recipe(tiny, **{"schedule.steps": 3, **changes})))
    try:
        assert list(stored_baselines(file, file.build())) == applies
    finally:
        fields.write_text(before)


def test_title_and_caption_are_as_wide_as_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scores = {"kind": "regression", "headline": "pearson", "metrics": {"pearson": 0.5}, "rows": 10}
    evaluation = {"run": "bert_multitask-20261122-020156", "step": 170, "seconds_of_training": 118.2, "split": "test"}
    print_results({**evaluation, "tasks": {"a": scores}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "bert_multitask-20261122-020156, test split, after step 170, 1 min 58 s of"
    assert max(map(len, lines)) <= 80
