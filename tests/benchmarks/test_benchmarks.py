"""The maths of the benchmarks; the measurements themselves are run by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lmrecipes.tracking.results import write_results_into

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A file of the benchmarks as a module: they are scripts, not a package."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name.replace('/', '_')}", BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


pairs = load("pairs")


def test_ratio_is_the_median_of_the_pairs_and_not_of_the_times() -> None:
    # The machine was twice as slow in the last two pairs.
    taken = pairs.Pairs(ours=(1.2, 2.6, 2.4), bare=(1.0, 2.0, 2.0))
    assert taken.ratios == pytest.approx([1.2, 1.3, 1.2])
    assert taken.ratio == pytest.approx(1.2)


def test_pairs_are_interleaved_and_change_who_goes_first() -> None:
    order: list[str] = []

    def measure(name: str, value: float) -> float:
        order.append(name)
        return value

    said: list[str] = []
    taken = pairs.interleave(3, lambda: measure("ours", 2.0), lambda: measure("bare", 1.0), said.append)
    assert order == ["ours", "bare", "bare", "ours", "ours", "bare"]
    assert taken.ours == (2.0,) * 3 and taken.bare == (1.0,) * 3
    assert len(said) == 3 and "ratio 2.000" in said[-1]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.75, 3.0), (0.95, 4.0), (1.0, 4.0)])
def test_quantile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert pairs.quantile([3.0, 1.0, 4.0, 2.0], share) == expected


def test_tables_have_a_rule_and_equal_rows() -> None:
    lines = pairs.markdown_table(["", "s"], [["a", "1"], ["b", "2"]]).splitlines()
    assert lines == ["|  | s |", "| - | -: |", "| a | 1 |", "| b | 2 |"]


def test_loop_summary_separates_the_loop_from_the_computation() -> None:
    run = load("loop/run")
    real = [{"whole": 0.2, "compute": 0.19, "all-reduce": 0.002, "data": 0.004} for _ in range(19)]
    real.append({"whole": 0.4, "compute": 0.2, "all-reduce": 0.0, "data": 0.2})
    bare = [{"whole": 0.19, "compute": 0.19}] * 20
    found = run.summarize(real, bare)
    assert found.step == pytest.approx(0.2)
    assert found.median == pytest.approx(0.05) and found.p95 == pytest.approx(0.05)
    assert found.data == pytest.approx(0.02) and found.all_reduce == pytest.approx(0.01)
    assert found.longer == pytest.approx(0.2 / 0.19 - 1)
    assert "5.0%" in run.table({"bf16": found})


def test_first_step_of_the_bare_script_holds_the_whole_batch_once(tiny: Path, no_assets: Path, tmp_path: Path) -> None:
    from tiny import make_recipe

    from lmrecipes.recipe import Recipe

    run = load("startup/run")
    recipe = Recipe.model_validate(make_recipe(tiny))
    work = run.first_step(recipe, run.CASES["zero2"], tmp_path)
    texts = [tuple(text) for rank in work["ranks"] for micro in rank for bucket in micro for text in bucket]
    assert len(work["ranks"]) == 2 and len(texts) == recipe.batch.examples
    assert Path(work["deepspeed"]).is_file() and all(Path(task["folder"]).is_dir() for task in work["tasks"])


@pytest.mark.parametrize("name", ["startup", "loop"])
def test_a_written_table_replaces_the_former_one(name: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((BENCHMARKS / name / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    write_results_into(readme, "| one |")
    write_results_into(readme, "| two |")
    text = readme.read_text(encoding="utf-8")
    assert "| two |" in text and "| one |" not in text
