"""Gradient cosines of a run: what they are, the same on every world, and no trace of them in what is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from tiny import make_recipe, make_rows
from trajectories import Rows, train_cases

from lmrecipes.recipe import Recipe
from lmrecipes.training.loop import Start, Training

SHARES = {"tasks.rare.weight": 0.3}
STEPS = 2
ENGINES = ("plain", 0, 2, 3)
"""ZeRO 1 in fp32 keeps gradients as ZeRO 2 does; in bf16 it is another optimizer of DeepSpeed's."""
ALSO_WITHOUT = ((2, "fp32"), (1, "low"), (3, "low"))
"""Engines that train without cosines too (ZeRO 0 in bf16 is an autocast, which stays on in a process for good)."""
EVERY = {"schedule.steps": STEPS, "tracking.cosines_every": 1}


def trained(recipe: dict[str, Any], folder: Path) -> tuple[Training, Rows]:
    """In this process: the run after its steps, and what each of them gave."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
    training = Training(Recipe.model_validate(recipe), Start(run=folder))
    rows = [training.one_step(step)[0] for step in training.stream.steps(0, training.until)]
    return training, rows


def by_hand(training: Training, number: int, of: str, half: int | None = None) -> torch.Tensor:
    """The gradient of one task's mean loss over its examples in a step, or over those of a half, from autograd, one
    example at a time."""
    stream, model = training.stream, training.engine.module
    drawn = stream.drawn(number - 1)
    mine = np.flatnonzero(drawn.tasks == stream.batcher.names.index(of))
    chosen = mine if half is None else mine[half::2]
    units = dict.fromkeys(stream.batcher.names, 0.0) | {of: 1 / len(chosen)}
    shared = [p for name, p in model.named_parameters() if name.startswith("trunk")]
    total = torch.zeros(sum(p.numel() for p in shared))
    for at in chosen:
        one = drawn.take(np.array([at]))
        parts = [np.array([0])]
        micro = stream.batcher.micro_batch(parts, one.tasks, one.rows, units, stream.arrangement)
        found = torch.autograd.grad(model.losses(micro)[0], shared, allow_unused=True)
        total += torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(found, shared, strict=True)]
        )
    return total


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def test_cosines_are_those_of_autograd_on_each_task_alone(tiny: Path, tmp_path: Path) -> None:
    training, _ = trained(make_recipe(tiny, **SHARES, **{"tracking.cosines_every": 1, "schedule.steps": 1}), tmp_path)
    found = training.cosines.before_step(2, None)
    tasks = ("short", "long", "rare")
    whole = {task: by_hand(training, 2, task) for task in tasks}
    for at, a in enumerate(tasks):
        for b in tasks[at + 1 :]:
            assert found[f"cosine/{a}/{b}"] == pytest.approx(cosine(whole[a], whole[b]), abs=1e-4)
        halves = [by_hand(training, 2, a, half) for half in (0, 1)]
        assert found[f"cosine/{a}/{a}"] == pytest.approx(cosine(*halves), abs=1e-4)


def test_the_signal_is_the_dot_product_of_the_halves_means(tiny: Path, tmp_path: Path) -> None:
    training, _ = trained(make_recipe(tiny, **SHARES, **{"tracking.cosines_every": 1, "schedule.steps": 1}), tmp_path)
    drawn = training.stream.drawn(1)
    counts, gradients = training.cosines._gradients(2, {})
    found = training.cosines._measurement(2, 0.0, counts, gradients)
    of_step = training.stream.scales.factors(training.stream.batcher.elements(drawn.tasks, drawn.rows))
    for task in ("short", "long"):
        halves = [by_hand(training, 2, task, half) for half in (0, 1)]
        assert found.signal[task] == pytest.approx(of_step[task] ** 2 * float(halves[0] @ halves[1]), rel=1e-3)
        norm = of_step[task] * float(by_hand(training, 2, task).norm())
        assert found.norms[task] == pytest.approx(norm, rel=1e-4)


def without(rows: Rows) -> Rows:
    return [{key: value for key, value in row.items() if not key.startswith(("cosine", "time"))} for row in rows]


@pytest.fixture(scope="module")
def alone(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """On one rank, plain torch."""
    return trained(make_recipe(tiny, **SHARES, **EVERY), tmp_path_factory.mktemp("alone"))[1]


@pytest.fixture(scope="module")
def of_two_ranks(run: Run, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """On two ranks, in fp32 and in bf16 with dropout, measured and not."""
    recipes: dict[str, dict[str, Any]] = {}
    engines: dict[str, str | int] = {}
    kinds: dict[str, dict[str, Any]] = {"fp32": {}, "low": {"precision.compute": "bf16", "model.dropout": 0.1}}
    measured: list[tuple[str | int, str]] = [*((engine, "fp32") for engine in ENGINES), (1, "low"), (3, "low")]
    cases = [*((*one, 1) for one in measured), *((*one, 0) for one in ALSO_WITHOUT)]
    for engine, kind, every in sorted(cases, key=lambda case: case[0] == 3):
        case = f"{engine} {kind} {every}"
        changes = {**SHARES, **kinds[kind], "schedule.steps": STEPS, "batch.micro_examples": 3}
        recipes[case] = make_recipe(tiny, **changes, **{"tracking.cosines_every": every})
        engines[case] = engine
    return train_cases(run, tmp_path_factory.mktemp("ranks"), 2, engines, recipes)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_measures_the_same(engine: str | int, of_two_ranks: dict[str, Rows], alone: Rows) -> None:
    for row, wanted in zip(of_two_ranks[f"{engine} fp32 1"], alone, strict=True):
        cosines = {key for key in wanted if key.startswith("cosine")}
        assert cosines == {key for key in row if key.startswith("cosine")}
        for key in cosines:
            assert row[key] == pytest.approx(wanted[key], abs=1e-4), key
    assert len([key for key in alone[-1] if key.startswith("cosine/")]) == 6


@pytest.mark.parametrize(("engine", "name"), ALSO_WITHOUT)
def test_every_engine_trains_as_without(engine: str | int, name: str, of_two_ranks: dict[str, Rows]) -> None:
    assert without(of_two_ranks[f"{engine} {name} 1"]) == without(of_two_ranks[f"{engine} {name} 0"])
    assert not any(key.startswith("cosine") for row in of_two_ranks[f"{engine} {name} 0"] for key in row)
    measured = [key for key in of_two_ranks[f"{engine} {name} 1"][-1] if key.startswith("cosine/")]
    assert len(measured) == 6


ALIKE = {
    "packed": {"batch.micro_examples": 4, "model.dropout": 0.1, "batch.layout": "packed"},
    "layers": {"precision.layers": {"encoder.layer.0.*": "fp8"}, "precision.raising": {"overflows": 1, "every": 1}},
    "checkpointed": {"model.activation_checkpointing": True},
    "stochastic": {"precision": {"compute": "bf16", "master_weights": "none", "rounding": "stochastic"}},
}


@pytest.mark.parametrize("case", ALIKE)
def test_a_run_with_cosines_is_bitwise_the_run_without(case: str, tiny: Path, tmp_path: Path) -> None:
    base = make_recipe(tiny, **SHARES, **EVERY, **ALIKE[case])
    measured, rows = trained(base, tmp_path / "measured")
    weights = {name: weight.clone() for name, weight in measured.engine.full_parameters()}
    plain, wanted = trained(base | {"tracking": {**base["tracking"], "cosines_every": 0}}, tmp_path / "plain")
    assert without(rows) == without(wanted)
    for name, weight in plain.engine.full_parameters():
        assert torch.equal(weight, weights[name]), name


def conflicting(tiny: Path, folder: Path, sign: float) -> dict[str, Any]:
    """Two regressions on the same kind of texts; targets of the second are the first's times `sign`."""
    for name, seed, factor in (("one", 1, 1.0), ("other", 2, sign)):
        rows = make_rows("short", 400, seed)
        lines = (json.dumps({**row, "label": factor * (row["label"] - 3.6)}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    tasks = {
        name: {"kind": "regression", "source": {"files": str(folder / f"{name}.jsonl")}} for name in ("one", "other")
    }
    recipe = make_recipe(tiny, **{"tracking.cosines_every": 1, "schedule.steps": 12, "batch.examples": 32})
    return recipe | {"tasks": tasks}


def test_a_conflict_is_seen_and_identical_tasks_agree(tiny: Path, tmp_path: Path) -> None:
    """With equal heads, whose constant is too high for both tasks, or for one too high and for the other too low."""
    found = {}
    for name, sign in (("same", 1.0), ("opposite", -1.0)):
        (tmp_path / name).mkdir()
        training, _ = trained(conflicting(tiny, tmp_path / name, sign) | {"schedule": {"steps": 1}}, tmp_path / "run")
        with torch.no_grad():
            for head, bias in zip(training.engine.module.heads.values(), (2.0, 2.0 * sign), strict=True):
                head.linear.weight.copy_(0.1 * torch.linspace(-1, 1, 32)[None])
                head.linear.bias.fill_(bias)
        for number in range(2, 14):
            training.cosines.before_step(number, None)
        sums = training.cosines.sums
        found[name] = sums.plain("one", "other"), sums.corrected("one", "other"), sums.plain("one", "one")
    plain, corrected, floor = found["same"]
    assert corrected == pytest.approx(1, abs=0.2) and plain > floor > 0
    plain, corrected, floor = found["opposite"]
    assert corrected < -0.5 and plain < 0 < floor
