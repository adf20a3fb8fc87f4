"""The benchmarks of precision: their formulas, their tables, and one measurement of a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_benchmarks import BENCHMARKS, load

from lmrecipes.recipe import Recipe
from lmrecipes.tracking.results import write_results_into

memory = load("precision/memory")


@pytest.mark.parametrize(
    ("title", "wanted"),
    [
        ("fp32", 16), ("mixed bf16 (autocast)", 16), ("pure bf16, stochastic", 8), ("pure bf16, Kahan", 10),
        ("pure bf16, stochastic, RMSprop", 6), ("pure bf16, stochastic, SGD with momentum", 6),
        ("ZeRO 1, mixed bf16", 14), ("ZeRO 2, mixed bf16", 10), ("ZeRO 3, mixed bf16", 9),
        ("ZeRO 1, pure bf16, stochastic", 6), ("ZeRO 2, pure bf16, stochastic", 6),
        ("ZeRO 3, pure bf16, stochastic", 5),
    ],
)  # fmt: skip
def test_bytes_of_a_parameter_by_formula(title: str, wanted: float) -> None:
    (case,) = [case for case in memory.CASES if case.title == title]
    assert case.formula == wanted


def test_memory_is_judged_by_what_is_held() -> None:
    held = {"weights": 2.0, "masters": 0.0, "gradients": 2.0, "optimizer": 4.0, "live": 8.1, "resident": 8.2}
    mixed = held | {"weights": 4.0, "gradients": 4.0, "optimizer": 8.0}
    cases = {case.title: case for case in memory.CASES}
    found = {cases["mixed bf16 (autocast)"]: mixed, cases["pure bf16, stochastic"]: held}
    assert [target.met for target in memory.targets(found)] == [True, True]
    assert "| pure bf16, stochastic | 2.00 | 0.00 | 2.00 | 4.00 | 8.00 | 8.00 | 8.10 | 8.2 |" in memory.table(found)
    found[cases["pure bf16, Kahan"]] = mixed
    assert [target.met for target in memory.targets(found)] == [True, False]


def test_a_tiny_model_without_masters_holds_eight_bytes_a_parameter(
    tiny: Path, no_assets: Path, tmp_path: Path
) -> None:
    from tiny import make_recipe

    (case,) = [case for case in memory.CASES if case.title == "pure bf16, stochastic"]
    recipe = memory.recipe_of(Recipe.model_validate(make_recipe(tiny)), case)
    found = memory.measure(recipe, case, tmp_path)
    assert memory.held(found) == pytest.approx(8.0, rel=0.01)
    assert found["optimizer"] == pytest.approx(4.0, rel=0.01) and found["live"] >= memory.held(found)


def test_steps_are_compared_with_those_in_bf16() -> None:
    step_time = load("precision/step_time")
    turns = sys.modules["turns"]
    quick, slow = turns.Taken(90, 90, 2.0, 1.0, 5), turns.Taken(90, 90, 2.5, 3.0, 9)
    rounds = turns.Rounds({step_time.REFERENCE: [[quick]] * 3, "fp32": [[slow]] * 3})
    assert step_time.targets(rounds) == []
    assert "| fp32 | 3,000 | 3.00 | 3.00 to 3.00 | 0.00 | 2.5000 |" in step_time.table(rounds)
    rounds = turns.Rounds({step_time.REFERENCE: [[quick]] * 3, step_time.BY_LAYER: [[slow]] * 3})
    assert [target.met for target in step_time.targets(rounds)] == [False]


@pytest.mark.parametrize("name", ["fp16", "bf16 by layer"])
def test_a_side_takes_steps_at_its_precision(name: str, tiny: Path, no_assets: Path, tmp_path: Path) -> None:
    from tiny import make_recipe

    step_time = load("precision/step_time")
    recipe = step_time.at(Recipe.model_validate(make_recipe(tiny)), step_time.PRECISIONS[name])
    with step_time.begin(recipe, tmp_path, name, 2) as side:
        taken: list[Any] = [side.step(), side.step()]
    assert all(one.tokens > 0 and one.seconds > 0 and one.loss > 0 for one in taken)


def test_every_update_that_is_timed_changes_its_weights() -> None:
    update_time = load("precision/update_time")
    shapes = update_time.shapes_of(20, 8, 1)
    assert len(shapes) == 21
    taken = {name: (update_time.seconds(step),) for name, step in update_time.sides(shapes).items()}
    assert set(taken) == {update_time.FUSED, update_time.FOREACH, *update_time.OURS}
    assert update_time.table(taken).count("\n") == len(taken) + 1


@pytest.mark.parametrize("block", ["memory", "step_time", "update_time", "audit_cost"])
def test_the_page_on_precision_has_a_place_for_each_table(block: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((BENCHMARKS / "precision" / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    write_results_into(readme, "| one |", block)
    assert f"<!-- {block} -->\n| one |\n" in readme.read_text(encoding="utf-8")
