"""Runs that several test modules look at: made once, in two groups of processes."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Run
from tiny import make_recipe

from lmrecipes.planning.launch_pair import launch_pair
from lmrecipes.planning.pair_precision import pair_word
from lmrecipes.recipe import Recipe

WORKER = ROOT / "tests" / "training" / "runs_worker.py"
STEPS = 6
LONG_STEPS = 250
"""Of the run that signals interrupt: they must arrive before its end."""


@dataclass(frozen=True)
class Runs:
    """The folder that holds the runs, and what the worker said of each: `failed` and `problems`, or `state`."""

    folder: Path
    said: dict[str, dict[str, Any]]

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


def engine_config(recipe: dict[str, Any], zero: Any, world: int, offload: bool = False) -> dict[str, Any]:
    """The DeepSpeed configuration that `lmrecipes configure` would write."""
    checked = Recipe.model_validate(recipe)
    return launch_pair(checked, zero, pair_word(checked.precision), world, "cpu", offload).deepspeed


def long_recipe(tiny: Path) -> dict[str, Any]:
    """Enough steps for a signal to arrive in the middle of them."""
    return make_recipe(tiny, **{"schedule.steps": LONG_STEPS, "batch.micro_examples": 8, "evaluation.examples": 20})


def run_cases(run: Run, folder: Path, world: int, cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Train the cases one after the other on `world` processes (see runs_worker)."""
    order = folder / f"order{world}.json"
    order.write_text(json.dumps({"cases": cases, "out": str(folder)}))
    launch = [sys.executable, WORKER, order]
    if world > 1:
        launch = ["torchrun", "--standalone", f"--nproc_per_node={world}", WORKER, order]
    done = run(*launch, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, dict[str, Any]] = json.loads((folder / f"said{world}.json").read_text())
    return said


MADE: dict[Path, Runs] = {}


def make_runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The runs, made at the first call."""
    if tiny not in MADE:
        MADE[tiny] = _make_runs(run, tiny, tmp_path_factory)
    return MADE[tiny]


def _make_runs(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On two ranks: ZeRO 2 and 3 in bf16, whole, cut and resumed; DDP; offload. On one: plain, and wrong resumes."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"schedule.steps": STEPS, "batch.micro_examples": 4, "evaluation.examples": 20}
    bf16 = make_recipe(tiny, **common, **{"precision.compute": "bf16"})
    dropout = make_recipe(tiny, **common, **{"precision.compute": "bf16", "model.dropout": 0.1})
    plain = make_recipe(tiny, **common, **{"tracking.wandb": "offline"})
    kept = make_recipe(tiny, **common, **{"checkpoint.every": 1, "checkpoint.keep": 2})
    two, three = engine_config(bf16, 2, 2), engine_config(dropout, 3, 2)
    long = long_recipe(tiny)
    sgd = make_recipe(tiny, **common, **{"precision.compute": "bf16", "optimizer.name": "sgd"})
    sgd_offload = engine_config(sgd, 2, 2, offload=True)
    sgd_none = json.loads(json.dumps(engine_config(sgd, 2, 2)))
    sgd_none["zero_optimization"]["offload_optimizer"] = {"device": "none"}

    def case(name: str, recipe: dict[str, Any], deepspeed: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return {"name": name, "run": name, "recipe": recipe, "deepspeed": deepspeed, **more}

    said = run_cases(
        run, folder, 2,
        [
            case("zero2", bf16, two),
            case("zero2_cut", bf16, two, until=3),
            case("fp32_on_bf16", {**bf16, "precision": {"compute": "fp32"}}, None, run="zero2_cut", resume=True),
            case("zero2_resumed", bf16, two, run="zero2_cut", resume=True),
            case("zero2_open", bf16, two, until=2),
            case("ddp_long", long),
            case("offload2", bf16, engine_config(bf16, 2, 2, offload=True)),
            case("sgd", sgd, engine_config(sgd, 2, 2)),
            case("sgd_offload", sgd, sgd_offload),
            case("sgd_offload_none", sgd, sgd_none),
            case("not_finite", {**bf16, "optimizer": {"lr": 1e38}}, two),
            # Last: zero.Init replaces torch.nn.functional.linear for good, by one that rounds before it adds the bias.
            case("zero3", dropout, three),
            case("zero3_cut", dropout, three, until=3),
            case("zero3_resumed", dropout, three, run="zero3_cut", resume=True),
            case("offload3", bf16, engine_config(bf16, 3, 2, offload=True)),
            case("zero3_on_zero2", bf16, engine_config(bf16, 3, 2), run="zero2_open", resume=True),
        ],
    )  # fmt: skip
    said |= run_cases(
        run, folder, 1,
        [
            case("plain", plain),
            case("plain_cut", plain, until=3),
            case("plain_resumed", plain, run="plain_cut", resume=True),
            case("other_world", bf16, engine_config(bf16, 2, 1), run="zero2_open", resume=True),
            case("other_rate", {**bf16, "optimizer": {"lr": 0.5}}, run="zero2_open", resume=True),
            case("finished", plain, run="plain", resume=True),
            case("kept", kept, until=5),
        ],
    )  # fmt: skip
    return Runs(folder, said)
