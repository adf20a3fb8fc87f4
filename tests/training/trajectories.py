"""Train recipes on some processes under one engine, and compare what each step gave."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run

from lmrecipes.planning.hardware import Device
from lmrecipes.planning.launch_pair import launch_pair
from lmrecipes.planning.pair_precision import pair_word
from lmrecipes.recipe import Recipe

WORKER = ROOT / "tests" / "training" / "trajectory_worker.py"
ENGINES = ("plain", 0, 1, 2, 3)
Engine = str | int
Rows = list[dict[str, Any]]


def train_cases(
    run: Run, out: Path, world: int, engine: Engine | dict[str, Engine], recipes: dict[str, dict[str, Any]],
    device: Device = "cpu",
) -> dict[str, Rows]:  # fmt: skip
    """Train each recipe for its steps, one after the other in the same processes; rows of each step by case. engine:
    one for all, or by case, with ZeRO 3 last (see made_runs)."""
    cases = {}
    for name, recipe in recipes.items():
        zero: Any = engine[name] if isinstance(engine, dict) else engine
        checked = Recipe.model_validate(recipe)
        word = pair_word(checked.precision)
        pair = launch_pair(checked, zero, word, world, device) if zero != "plain" else None
        cases[name] = {"recipe": recipe, "deepspeed": pair.deepspeed if pair else None}
    out.mkdir(parents=True, exist_ok=True)
    order = out / "order.json"
    order.write_text(json.dumps({"cases": cases, "out": str(out)}))
    launch = [sys.executable, WORKER, order]
    if world > 1:
        launch = ["torchrun", "--standalone", f"--nproc_per_node={world}", WORKER, order]
    done = run(*launch, cwd=out)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: json.loads((out / f"{name}.json").read_text()) for name in cases}


def assert_same(rows: Rows, expected: Rows, tolerance: float, steps: int = 10) -> None:
    """Ten steps, of which so many agree in their losses and gradient norms (relative)."""
    assert len(rows) == len(expected) == 10
    for number, (row, wanted) in enumerate(zip(rows[:steps], expected[:steps], strict=True)):
        assert row["applied"]
        compared = {key: value for key, value in wanted.items() if key.startswith("loss") or key == "grad_norm"}
        assert {key for key in row if key.startswith("loss")} | {"grad_norm"} == set(compared)
        for key, value in compared.items():
            assert row[key] == pytest.approx(value, rel=tolerance), f"step {number}: {key}"
