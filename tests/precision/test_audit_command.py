"""`lmrecipes audit` on a tiny recipe and its run: the answer, where it is kept, and that its advice can be trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_recipe
from tiny_gpt import make_gpt_recipe

from lmrecipes import cli
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_precision import Precision
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.run_record import read_run
from lmrecipes.training.engine import Engine
from lmrecipes.training.loop import Start, Training


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, recipe: dict[str, Any]) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    path = path.rename(folder / f"{recipe['name']}.yaml")
    return str(path)


def answer_of(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["audit", *args, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)  # nothing else on stdout
    return answer


def losses(recipe: dict[str, Any], folder: Path) -> list[float]:
    """What training the recipe gives, step by step."""
    training = Training(Recipe.model_validate(recipe), Start(run=folder))
    try:
        steps = training.stream.steps(0, training.recipe.schedule.steps)
        return [training.one_step(step)[0]["loss"] for step in steps]
    finally:
        training.engine.release()


def test_the_recommended_plan_trains_as_fp32_does(tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tiny, **{"schedule.steps": 30, "optimizer.lr": 0.001})
    answer = answer_of(capsys, write(here, recipe), "--steps", "1", "--after", "3", "--write", "block.yaml")
    block = yaml.safe_load((here / "block.yaml").read_text())["precision"]
    assert block == answer["recommendation"]["precision"] and Precision(**block).by_layer
    assert not (here / "runs").exists()
    formats = {layer["name"]: layer["format"] for layer in answer["layers"]}
    products = [layer["name"] for layer in answer["layers"] if layer["kind"] == "product"]
    assert "encoder.layer.1.output.dense" in products and "heads.long.linear" in products
    assert sum(formats[name] == "fp8" for name in products) > len(products) / 2
    exact = losses(recipe, here / "fp32")
    planned = losses({**recipe, "precision": block}, here / "planned")
    assert sum(exact[:3]) > sum(exact[-3:])  # it learns
    # Step by step the same texts, so what differs is the arithmetic.
    assert sum(map(lambda a, b: abs(a - b), exact, planned)) / sum(exact) < 0.02


def test_a_run_is_audited_with_its_weights_and_shows_it(
    tiny_gpt: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = make_gpt_recipe(tiny_gpt, **{"schedule.steps": 4, "checkpoint.every": 2, "name": "run"})
    training = Training(Recipe.model_validate(recipe), Start(run=here / "run"))
    training.fit()
    training.engine.release()
    run = RunFolder(here / "run")
    answer = answer_of(capsys, "run", "--steps", "1")
    assert answer["weights"] == "checkpoint step-00000002" and answer["optimizer"] == "as saved"
    assert answer["from_step"] == 2 and answer["run"] == "run"
    language = next(layer for layer in answer["layers"] if layer["name"] == "language")
    assert language["format"] == "bf16" and language["tensors"]["gradient"]["rms"] > 0
    assert json.loads(run.audit.read_text()) == answer
    page = run.report.read_text()
    assert "where precision hurts" in page and "layers.1.mlp.down_proj" in page
    assert read_run(run.path).audit == answer

    shutil.rmtree(run.checkpoints)
    again = answer_of(capsys, "run", "--steps", "1", "--after", "1", "--budget", "strict,scaling=none")
    assert again["weights"] == "the exported model" and again["optimizer"] != answer["optimizer"]
    assert again["budget"]["scaling"] == "none"
    assert all(layer["update"] for layer in again["layers"])  # past the end of the schedule too

    shutil.rmtree(run.model)
    assert cli.run(["audit", "run", "--steps", "1"]) == 2
    assert "no complete checkpoint and no exported model" in capsys.readouterr().err.replace("\n", " ")


def test_a_tiny_loss_factor_is_found(tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tiny, **{"tasks.long.loss_factor": 1e-6})
    budget = "scaling=none,underflow=0.1"
    answer = answer_of(capsys, write(here, recipe), "--steps", "1", "--after", "1", "--budget", budget)
    found = {finding["layer"]: finding for finding in answer["findings"] if finding["kind"] == "small gradient"}
    assert found["heads.long.linear"]["value"] > 0.5
    formats = {layer["name"]: layer["format"] for layer in answer["layers"]}
    assert formats["heads.long.linear"] == "bf16" and formats["heads.short.linear"] == "fp8"


def test_flags_that_make_no_sense(tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(here, make_recipe(tiny))
    assert cli.run(["audit", path, "--budget", "nomal"]) == 2
    assert "Did you mean `normal`?" in capsys.readouterr().err
    assert cli.run(["audit", path, "--steps", "0", "--rows", "4"]) == 2
    said = capsys.readouterr().err
    assert "--steps" in said and "--rows" in said
    assert cli.run(["audit"]) == 2 and cli.run(["audit", "no_such_recipe"]) == 2


def test_the_engine_is_given_back(tiny: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An engine of other precision can start in the same process."""
    answer_of(capsys, write(here, make_recipe(tiny)), "--steps", "1", "--after", "0")
    engine = Engine(Recipe.model_validate(make_recipe(tiny, **{"precision.compute": "bf16"})), None)
    assert engine.world_size == 1
    engine.release()
