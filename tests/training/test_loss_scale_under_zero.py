"""fp16 under DeepSpeed: the loss scale and the steps that it skips are those of plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from tiny import make_recipe

from lmrecipes.planning.launch_pair import Stage, launch_pair
from lmrecipes.recipe import Recipe

WORKER = ROOT / "tests" / "training" / "fp16_worker.py"
POISONED = (1, 2, 3)
SCALES = [2.0, 2.0, 1.0, 1.0, 1.0, 1.0]
"""Halved at the first step that is not finite, and never below 1."""


@pytest.fixture(scope="module")
def said(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Steps by engine."""
    out = tmp_path_factory.mktemp("fp16")
    precision = {"compute": "fp16", "loss_scaling": {"initial": 2.0}}
    recipe = make_recipe(tiny, **{"batch.micro_examples": 4, "precision": precision, "schedule.steps": len(SCALES)})
    cases: dict[str, dict[str, Any]] = {"plain": {"recipe": recipe, "deepspeed": None}}
    engines: dict[str, tuple[Stage, bool]] = {
        "zero1": (1, False),
        "zero2": (2, False),
        "offload": (2, True),
        "zero3": (3, False),
    }
    for name, (zero, offload) in engines.items():
        settings = launch_pair(Recipe.model_validate(recipe), zero, "fp16", 1, "cuda", offload).deepspeed
        settings["zero_optimization"]["overlap_comm"] = False  # a GPU's
        cases[name] = {"recipe": recipe, "deepspeed": settings}
    (out / "order.json").write_text(json.dumps({"cases": cases, "poisoned": POISONED, "out": str(out)}))
    done = run("torchrun", "--standalone", "--nproc_per_node=1", WORKER, out / "order.json", cwd=out)
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, list[dict[str, Any]]] = json.loads((out / "said.json").read_text())
    return found


@pytest.mark.parametrize("engine", ["plain", "zero1", "zero2", "offload", "zero3"])
def test_the_scale_follows_what_is_finite_and_a_streak_at_its_smallest_goes_on(
    engine: str, said: dict[str, list[dict[str, Any]]]
) -> None:
    assert [step["loss_scale"] for step in said[engine]] == SCALES
    assert [number for number, step in enumerate(said[engine]) if not step["applied"]] == list(POISONED)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "offload", "zero3"])
def test_clipped_gradients_are_those_of_the_loss_without_a_scale(
    engine: str, said: dict[str, list[dict[str, Any]]]
) -> None:
    """Weights are rounded to fp16 here, products alone in plain torch."""
    for number, (step, expected) in enumerate(zip(said[engine], said["plain"], strict=True)):
        if number not in POISONED:
            assert step["sums"] == pytest.approx(expected["sums"], rel=0.01)
            assert step["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.02)
