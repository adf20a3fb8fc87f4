"""`lmrecipes train RECIPE --each-task-alone`: what is trained, what is compared, and that finished runs are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny import make_recipe

from lmrecipes.cli import run as command
from lmrecipes.launcher import _forwarded
from lmrecipes.models.heads import HeadSpec
from lmrecipes.precision.layer_rules import layer_problems
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe
from lmrecipes.studies.alone import alone_cells, check_alone, gain_interval
from lmrecipes.studies.gains import Comparison, interval_words, signed
from lmrecipes.training.evaluation import Outputs

Capture = pytest.CaptureFixture[str]


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "alone" / "results.jsonl").read_text().splitlines()]


def test_a_run_then_each_task_alone_and_what_is_finished_is_not_repeated(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    changes = {"tasks.rare.weight": 0.0, "schedule.steps": 12, "evaluation.examples": 30, "tracking.cosines_every": 2}
    recipe = make_recipe(tiny, **changes)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    train = ["train", "mine.yaml", "--processes", "1", "--run-folder", "runs/one", "--each-task-alone"]
    assert command(train) == 0
    out = capfd.readouterr().out
    folder = tmp_path / "runs" / "one"
    alone = json.loads((folder / "alone.json").read_text())
    seen = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert list(alone["tasks"]) == ["long", "short"]
    for name, task in alone["tasks"].items():
        assert task["examples_joint"] == seen[f"examples/{name}"]
        assert (
            abs(task["examples_alone"] - task["examples_joint"]) <= 8 and task["steps"] * 16 == task["examples_alone"]
        )
        assert task["joint"] == evaluation["tasks"][name]["metrics"][task["metric"]]
        (cell,) = (one for one in journal(folder) if one["row"] == name)
        assert task["alone"] == cell["tasks"][name]["metrics"][task["metric"]]
        assert task["gain"] == pytest.approx(task["joint"] - task["alone"])
        low, high = task["interval"]
        assert low <= task["gain"] <= high
        assert name in out and signed(task["gain"]) in out and interval_words(task["interval"]) in out
    assert alone["seconds"]["joint"] == evaluation["seconds_of_training"] and alone["seconds"]["alone"] > 0
    assert '<h3 class="task">Each task alone' in (folder / "report.html").read_text()
    lines = (folder / "cosines.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 6, 8, 10, 12]

    before = journal(folder)
    (folder / "alone" / "results.jsonl").write_text(json.dumps(before[0]) + "\n")  # as if cut before the second
    (folder / "alone.json").unlink()
    assert command([*train, "--resume"]) == 0
    said = capfd.readouterr()
    assert "cell 2/2" in said.err and "cell 1/2" not in said.err
    after = json.loads((folder / "alone.json").read_text())
    assert after["tasks"]["long"] == alone["tasks"]["long"]
    assert after["tasks"]["short"]["alone"] == alone["tasks"]["short"]["alone"]

    assert command([*train, "--resume", "--optimizer.lr", "0.1"]) == 2
    assert "trained with other settings" in capfd.readouterr().err


def test_a_cell_is_the_recipe_with_one_task_and_its_examples(tiny: Path, tmp_path: Path) -> None:
    changes = {
        "mixture": {"schedule": [{"at": 0.5, "weights": {"rare": 2.0}}], "max_epochs": 100},
        "loss_weighting.method": "dwa", "gates": {"all": {"tasks": ["long"]}}, "tasks.rare.max_epochs": 3,
        "precision": {"compute": "bf16", "layers": {"heads.long": "fp32"}, "raising": {"overflows": 1}},
    }  # fmt: skip
    recipe = Recipe.model_validate(make_recipe(tiny, **changes))
    cells = alone_cells(recipe, {"short": 90, "long": 60, "rare": 3}, tmp_path)
    assert [(cell.variant, cell.recipe.schedule.steps) for cell in cells] == [("short", 6), ("long", 4), ("rare", 1)]
    for cell in cells:
        again = Recipe.model_validate(cell.recipe.model_dump(mode="json"))
        assert again == cell.recipe and list(again.tasks) == [cell.variant]
        assert again.batch == recipe.batch and again.optimizer == recipe.optimizer and again.seed == recipe.seed
        assert not again.mixture.schedule and again.tasks[cell.variant].max_epochs is None
        assert again.precision.by_layer == again.precision.raising.on == (cell.variant == "long")
        assert layer_problems(again) == []


def outputs(values: Any, targets: Any) -> Outputs:
    return Outputs(np.arange(len(targets)), np.asarray(values, np.float32), np.asarray(targets))


def test_the_interval_is_paired_and_its_sign_follows_the_metric() -> None:
    spec = HeadSpec("regression", (), (0.0,), 1.0)
    rng = np.random.default_rng(0)
    targets = rng.normal(size=400)
    noise = rng.normal(size=400)
    better, worse = outputs(targets + 0.9 * noise, targets), outputs(targets + noise, targets)
    for metric in ("mean_squared_error", "pearson"):
        low, high = gain_interval(metric, spec, better, worse) or (0.0, 0.0)
        assert 0 < low < high
        low, high = gain_interval(metric, spec, worse, better) or (0.0, 0.0)
        assert low < high < 0
    other_rows = Outputs(np.arange(1, 401), better.values, better.targets)
    assert gain_interval("pearson", spec, better, other_rows) is None
    assert gain_interval("pearson", spec, outputs(np.ones(400), targets), worse) is None


def test_verdicts() -> None:
    def of(interval: tuple[float, float] | None) -> str:
        return Comparison("accuracy", 9, 0.8, 0.7, 0.1, interval, 10, 10, 1, 1.0).verdict

    assert [of((0.01, 0.2)), of((-0.2, -0.01)), of((-0.1, 0.1)), of(None)] == ["gains", "loses", "undecided", ""]


def test_refusals_come_before_anything_is_trained(tiny: Path) -> None:
    recipe = Recipe.model_validate(make_recipe(tiny))
    check_alone(recipe, [])
    with pytest.raises(InputError) as refused:
        check_alone(recipe.model_copy(update={"tasks": {"short": recipe.tasks["short"]}}), ["--offload"])
    assert [problem.id for problem in refused.value.problems] == ["flag-conflict", "alone-tasks"]


def test_ranks_are_not_told() -> None:
    assert _forwarded(["--each-task-alone", "--schedule.steps", "3"]) == ["--schedule.steps", "3"]
