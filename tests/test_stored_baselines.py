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

from lmrecipes import results
from lmrecipes.recipe import Lora, Recipe
from lmrecipes.recipe_files import RecipeFile, find_recipe
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
    assert list(evaluation["baselines"]) == ["linear", "scratch"]
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
        ({}, ["linear", "scratch"]),
        ({"tracking.log_every": 5, "description": "x", "precision.compute": "bf16"}, ["linear", "scratch"]),
        ({"optimizer.lr": 0.001}, ["linear"]),
        ({"batch.examples": 32}, ["linear"]),
        ({"tasks.long.source.test_fraction": 0.2}, []),
        ({"evaluation.examples": 10}, []),
        ({"schedule.steps": 4}, ["linear"]),
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


TEXTS = {"kind": "language_modelling", "source": {"files": "texts.jsonl"}}


def measured_with(
    folder: Path, tasks: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[RecipeFile, Recipe, dict[str, Any]]:
    """The recipe, and the evaluation.json of a run of it that had measured what the model knew before and measures the
    baselines now: every metric of every task is 1 at the start, 2 at the end, 3 from scratch, and 4 by TF-IDF."""
    recipe = Recipe.model_validate({"name": "toy", "tasks": tasks})
    place = folder / "recipes" / "toy" / "recipe.py"
    place.parent.mkdir(parents=True)
    run = RunFolder(folder / "run")
    run.path.mkdir()
    start = {"title": "before training", "tasks": {name: {"metric": 1.0} for name in tasks}}
    scores = {"tasks": {name: {"metrics": {"metric": 2.0}} for name in tasks}}
    run.evaluation.write_text(json.dumps({**scores, "baselines": {"start": start}}))
    scratch = {"tasks": {name: {"metrics": {"metric": 3.0}} for name in tasks}}
    labelled = {name: {"metric": 4.0} for name, task in tasks.items() if task["kind"] != "language_modelling"}
    monkeypatch.setattr(results, "linear_scores", lambda _: labelled)
    file = RecipeFile(place, {"recipe": lambda: recipe})
    results.measure_baselines(run, file, recipe, lambda _: scratch)
    return file, recipe, read_evaluation(run)


def test_what_the_model_knew_before_stays_beside_the_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {"stars": {"kind": "regression", "source": {"files": "stars.jsonl"}}, "texts": TEXTS}
    file, recipe, evaluation = measured_with(tmp_path, tasks, monkeypatch)
    values = {
        name: {task: metrics["metric"] for task, metrics in baseline["tasks"].items()}
        for name, baseline in evaluation["baselines"].items()
    }
    assert values == {
        "start": {"stars": 1.0, "texts": 1.0}, "linear": {"stars": 4.0}, "scratch": {"stars": 3.0, "texts": 3.0}
    }  # fmt: skip
    assert "TF-IDF + linear for stars only" in capsys.readouterr().err
    assert set(stored_baselines(file, recipe)) == {"linear", "scratch"}, "the start is the run's own"
    other = {**tasks, "texts": {**TEXTS, "source": {"files": "other_texts.jsonl"}}}
    assert list(stored_baselines(file, Recipe.model_validate({"name": "toy", "tasks": other}))) == ["linear"]


def test_tasks_of_tokens_have_no_bag_of_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, recipe, evaluation = measured_with(tmp_path, {"texts": TEXTS}, monkeypatch)
    assert list(evaluation["baselines"]) == ["start", "scratch"]
    assert "no linear model" in capsys.readouterr().err
    assert list(stored_baselines(file, recipe)) == ["scratch"]
    adapted = recipe.model_copy(update={"model": recipe.model.model_copy(update={"lora": Lora(rank=4)})})
    assert list(stored_baselines(file, adapted)) == ["scratch"], "the model from scratch has no adapters"


def test_finish_run_keeps_what_the_model_knew_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, recipe, evaluation = measured_with(tmp_path, {"texts": TEXTS}, monkeypatch)
    later = RunFolder(tmp_path / "later")
    later.path.mkdir()
    write_recipe(later, recipe)
    later.evaluation.write_text(
        json.dumps({**evaluation, "baselines": {"start": evaluation["baselines"]["start"]}, "run": "later"})
    )
    finish_run(later, file)
    kept = read_evaluation(later)["baselines"]
    assert list(kept) == ["start", "scratch"] and kept["scratch"]["measured"] == "stored"


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
