"""Rules of layers that do not fit a recipe's model are found before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_recipe
from tiny_gpt import make_gpt_recipe

from lmrecipes.cli import run as command
from lmrecipes.precision.layer_rules import layer_problems
from lmrecipes.recipe import Recipe

Capture = pytest.CaptureFixture[str]


def found(recipe: dict[str, Any], **layers: str) -> list[str]:
    made = Recipe.model_validate({**recipe, "precision": {"compute": "bf16", "layers": layers}})
    return [problem.id for problem in layer_problems(made)]


def test_names_are_those_of_the_model(tiny: Path, tiny_gpt: Path) -> None:
    bert, gpt = make_recipe(tiny), make_gpt_recipe(tiny_gpt)
    assert found(bert, **{"*": "fp8", "encoder.layer.0": "bf16", "heads.short": "fp32"}) == []
    assert (
        found(bert, **{"encoder.layr.*": "fp8", "language": "fp32", "heads.shrot": "fp16"}) == ["precision-layers"] * 3
    )
    assert found(bert, **{"embeddings": "fp8"}) == ["precision-products"]
    assert found(gpt, **{"*": "fp8"}) == ["precision-language"]
    assert found(gpt, **{"*": "fp8", "language": "bf16"}) == []
    perceptron = {"tasks": {"d": {"kind": "classification", "source": {"files": "d.jsonl", "ids": "x"}}}}
    perceptron |= {"name": "p", "model": {"mlp": {"inputs": 4, "hidden": [3, 2]}}}
    assert found(perceptron, **{"layers.0": "fp8", "heads.d": "fp32"}) == []
    assert found(perceptron, **{"layers.2": "fp8"}) == ["precision-layers"]


@pytest.mark.parametrize("name", ["check", "plan", "study", "search", "train"])
def test_commands_say_it_before_they_begin(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    precision = {"compute": "bf16", "layers": {"encoder.layr": "fp32"}}
    Path("mine.yaml").write_text(yaml.safe_dump(make_recipe(tiny, precision=precision)))
    assert command([name, "mine.yaml"]) == 2
    out, err = capfd.readouterr()
    assert "'encoder.layr' matches no module" in (out if name == "check" else err)
    assert not Path("runs").exists()
