"""The average of the weights is the one that a hand computes, under every engine; training cannot tell of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from made_runs import engine_config
from tiny import make_recipe

from lmrecipes.models.shapes import shapes_of
from lmrecipes.planning.by_precision import compare
from lmrecipes.planning.cost import total
from lmrecipes.planning.hardware import Hardware
from lmrecipes.recipe import Averaging, Recipe

WORKER = ROOT / "tests" / "training" / "averaging_worker.py"
STEPS = 6
PURE = {"precision": {"compute": "bf16", "master_weights": "none", "rounding": "kahan"}}
CASES: dict[str, tuple[int, Any, dict[str, Any]]] = {
    "plain": (1, None, {}),
    "pure": (1, None, PURE),
    "ddp": (2, None, {}),
    "zero1_bf16": (2, 1, {"precision.compute": "bf16"}),
    "zero2": (2, 2, {}),
    "zero2_pure": (2, 2, PURE),
    "zero2_offload": (2, 2, {"precision.compute": "bf16"}),
    "zero3": (2, 3, {}),
}
"""Processes, ZeRO stage, changes of the recipe."""


@pytest.fixture(scope="module")
def found(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the worker says of each case: two groups of processes for all."""
    said = {}
    for world in (1, 2):
        out, cases = tmp_path_factory.mktemp(f"world{world}"), {}
        for name, (ranks, zero, changes) in CASES.items():
            if ranks == world:
                common = {"averaging.ema_decay": 0.5, "schedule.steps": 20, "batch.micro_examples": 4}
                recipe = make_recipe(tiny, **common, **{"evaluation.examples": 10}, **changes)
                cases[name] = {
                    "recipe": recipe,
                    "deepspeed": zero and engine_config(recipe, zero, world, "offload" in name),
                }
        order = out / "order.json"
        order.write_text(json.dumps({"cases": cases, "out": str(out), "steps": STEPS}))
        launch = [sys.executable, WORKER, order]
        if world > 1:
            launch = ["torchrun", "--standalone", f"--nproc_per_node={world}", WORKER, order]
        done = run(*launch, cwd=out)
        assert done.returncode == 0, done.stderr[-4000:]
        said |= {name: json.loads((out / f"{name}.json").read_text()) for name in cases}
    return said


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_average_that_a_hand_computes(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Of the weights after each applied update; one of the six is skipped, and does not count."""
    case = found[name]
    assert case["updates"] == [STEPS - 1, STEPS - 1]
    # Pure weights are bf16 themselves: what is put in their place is rounded to 8 bits.
    assert case["apart"] < (2e-2 if "pure" in name else 1e-6)
    assert case["moved"] > 1e-4, "it is not the weights themselves"


@pytest.mark.parametrize("name", CASES)
def test_training_goes_on_as_if_nothing_had_been_exchanged(name: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[name]["restored"] == 0 and found[name]["restored_live"]


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_holds_it_to_the_last_bit(name: str, found: dict[str, dict[str, Any]]) -> None:
    # DeepSpeedCPUAdam multiplies beta^step up from step to step, and computes it anew after a load.
    assert found[name]["resumed"] <= (1e-6 if "offload" in name else 0)


@pytest.mark.parametrize("name", CASES)
def test_the_exported_model_is_the_average(name: str, found: dict[str, dict[str, Any]]) -> None:
    assert found[name]["exported"] == 0
    assert found[name]["said"] == STEPS - 1 + 2


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3"])
def test_it_is_the_same_on_every_engine(name: str, found: dict[str, dict[str, Any]]) -> None:
    """Biases of keys apart, which change no attention: their gradients are noise, and Adam makes steps of noise."""
    for weight, some in found["plain"]["some"].items():
        assert weight.endswith("key.bias") or found[name]["some"][weight] == pytest.approx(some, abs=2e-5), weight


def test_its_memory_is_told_and_planned(found: dict[str, dict[str, Any]], tiny: Path) -> None:
    """fp32: four bytes a weight, under ZeRO a rank's part of them."""
    recipe = Recipe.model_validate(make_recipe(tiny, **{"averaging.ema_decay": 0.5}))
    shapes = shapes_of(recipe, {"long": 3, "rare": 3})
    for name, (world, zero) in {"plain": (1, None), "ddp": (2, None), "pure": (1, None), "zero2": (2, 2)}.items():
        (row, *_) = compare(recipe, shapes, Hardware("cpu", world), zero).rows
        planned = total(row.cost.held, "average")
        assert planned == 4 * found[name]["trained"] / (world if zero else 1)
        assert found[name]["bytes"] == pytest.approx(planned, rel=0.05), "but for padding of the parts"
    without = compare(recipe.model_copy(update={"averaging": Averaging()}), shapes, Hardware("cpu", 1), None)
    assert total(without.rows[0].cost.held, "average") == 0
