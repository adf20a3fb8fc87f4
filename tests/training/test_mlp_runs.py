"""recipes/precision_mlp: one trajectory on every engine, a model that is read back, and what rounding costs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from conftest import ROOT, Run
from trajectories import assert_same, train_cases

from lmrecipes.data.encode import encode_tasks
from lmrecipes.inference.own_tasks import evaluate_run
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_files import find_recipe
from lmrecipes.run_folder import open_run

FILE = find_recipe(str(ROOT / "recipes" / "precision_mlp" / "recipe.py"))


def variant(name: str, **changes: Any) -> dict[str, Any]:
    """A variant of the recipe as a dictionary, parts of it changed; its data is encoded."""
    recipe = FILE.build(name).model_dump(mode="json")
    for part, fields in {"tracking": {"wandb": "off", "tensorboard": False}, **changes}.items():
        recipe[part] = {**recipe[part], **fields} if isinstance(fields, dict) else fields
    encode_tasks(Recipe.model_validate(recipe), progress=False)
    return recipe


def test_every_variant_is_a_flag() -> None:
    names = {"recipe", "fp32", "fp16", "by_layer", "fp8", "nearest", "stochastic", "kahan", "mnist"}
    assert set(FILE.variants) == names, "what they share is a function with arguments, and none of them"


def test_every_engine_gives_one_trajectory(run: Run, tmp_path: Path) -> None:
    losses = ("cross_entropy", "binary_cross_entropy", "mean_squared_error")
    cases = {}
    for name, loss in zip(("sgd", "adamw", "rmsprop"), losses, strict=True):
        changes = {
            "batch": {"examples": 10, "micro_examples": 3},
            "schedule": {"steps": 10},
            "optimizer": {"name": name},
        }
        cases[loss] = variant("fp32", **changes)
        cases[loss]["tasks"]["digits"]["loss"] = loss
    alone = train_cases(run, tmp_path / "alone", 1, "plain", cases)
    for loss in losses:
        assert alone[loss][0]["loss"] == pytest.approx(1, rel=0.15), "heads start as the best constant"
        assert alone[loss][-1]["loss"] < alone[loss][0]["loss"]
    for engine in ("plain", 3):
        found = train_cases(run, tmp_path / f"{engine}", 2, engine, cases)
        for loss in losses:
            assert_same(found[loss], alone[loss], 2e-4)


def test_nearest_rounding_stalls_where_stochastic_and_kahan_go_on(run: Run, tmp_path: Path) -> None:
    """Updates of 1e-4 and less are below half a unit in the last place of most bf16 weights, which are around 0.05."""
    short = {"optimizer": {"lr": 1e-4}, "schedule": {"steps": 240}}
    names = ("fp32", "nearest", "stochastic", "kahan")
    cases = {f"{name}{seed}": variant(name, **short, seed=seed) for name in names for seed in (0, 1)}
    rows = train_cases(run, tmp_path, 1, "plain", cases)
    reached = {name: [mean(row["loss"] for row in rows[f"{name}{seed}"][-20:]) for seed in (0, 1)] for name in names}
    for seed in (0, 1):
        learned = 1 - reached["fp32"][seed]
        assert learned > 0.1, "there is something to learn"
        assert 1 - reached["nearest"][seed] < 0.5 * learned, "updates are lost"
        for name in ("stochastic", "kahan"):
            assert 1 - reached[name][seed] > 0.95 * learned, "none is lost on average"


def test_a_run_is_read_back(run: Run, tmp_path: Path) -> None:
    flags = ["--schedule.steps", "60", "--optimizer.name", "rmsprop", "--tasks.digits.loss", "mean_squared_error"]
    flags += ["--tracking.wandb", "off", "--run-folder", "r"]
    done = run("lmrecipes", "train", "precision_mlp", "--fp32", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = open_run(tmp_path / "r")
    wanted = json.loads(folder.evaluation.read_text())["tasks"]
    assert wanted["digits"]["metrics"]["accuracy"] > 0.7
    found = evaluate_run(folder)["tasks"]["digits"]
    assert found["loss"] == pytest.approx(wanted["digits"]["loss"], rel=1e-5)
    assert found["metrics"] == pytest.approx(wanted["digits"]["metrics"])
    card = (folder.model / "README.md").read_text()
    assert "A multi-layer perceptron (784 - 128 - 64)" in card
    assert "library_name: lmrecipes" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "estimated probabilities of 0, 1" in code
    shown = run("python", "-c", code.replace('Path("r/model")', f'Path("{folder.model}")'), cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "tensor([[" in shown.stdout
