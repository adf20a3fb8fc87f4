"""The gate's test, against numbers worked out by hand and against scipy's own paired test."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_study import failed_result, made_recipe, made_result
from scipy import stats

from lmrecipes.problems import RunFailed
from lmrecipes.recipe import Gate, Precision, Recipe
from lmrecipes.studies.cells import Cell
from lmrecipes.studies.gate import gate_cells, verdicts_of
from lmrecipes.studies.parity import t_test
from lmrecipes.studies.record import CellResult

values = st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)), min_size=2, max_size=9)


def test_by_hand() -> None:
    """Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t(0.95, 2) = 2.91999: 0.02 + 2.92 * 0.01 / 1.732."""
    pairs = [(0.80, 0.81), (0.79, 0.81), (0.80, 0.83)]
    found = t_test("accuracy", pairs, margin=0.04, confidence=0.95)
    assert found.worse == pytest.approx(0.02)
    assert found.bound == pytest.approx(0.036859, abs=1e-6)
    assert found.p == pytest.approx(stats.t.cdf(-0.02 / (0.01 / math.sqrt(3)), 2))
    assert found.met
    assert not t_test("accuracy", pairs, margin=0.036, confidence=0.95).met
    assert not t_test("accuracy", pairs, margin=0.04, confidence=0.99).met


@given(pairs=values, margin=st.floats(0.001, 0.5), confidence=st.floats(0.55, 0.99))
def test_as_scipy(pairs: list[tuple[float, float]], margin: float, confidence: float) -> None:
    found = t_test("accuracy", pairs, margin, confidence)
    worse = [reference - own for own, reference in pairs]
    assume(max(worse) - min(worse) > 1e-6)
    scipy = stats.ttest_1samp(worse, margin, alternative="less")
    assert found.p == pytest.approx(scipy.pvalue, abs=1e-9)
    assume(abs(scipy.pvalue - (1 - confidence)) > 1e-9)
    assert found.met == (scipy.pvalue < 1 - confidence)
    assert found.bound == pytest.approx(float(scipy.confidence_interval(confidence).high), abs=1e-9)


def test_seeds_are_paired() -> None:
    """Both sides spread much more over seeds than they differ."""
    own = [0.70, 0.80, 0.90, 0.75]
    assert t_test("accuracy", [(x, x + 0.001) for x in own], 0.01, 0.95).met
    assert not t_test("accuracy", list(zip(own, [0.801, 0.701, 0.751, 0.901], strict=True)), 0.01, 0.95).met


@pytest.mark.parametrize("metric", ["mean_squared_error", "bits_per_byte", "perplexity"])
def test_lower_is_better(metric: str) -> None:
    lower = [(1.0, 1.5), (1.1, 1.5), (0.9, 1.4)]
    assert t_test(metric, lower, 0.01, 0.95).met
    assert not t_test(metric, [(b, a) for a, b in lower], 0.01, 0.95).met
    assert t_test("accuracy", [(b, a) for a, b in lower], 0.01, 0.95).met


def test_a_perplexity_is_compared_as_a_share_of_the_references() -> None:
    found = t_test("perplexity", [(20.2, 20.0), (40.8, 40.0), (10.15, 10.0)], margin=0.03, confidence=0.95)
    assert found.worse == pytest.approx(0.015)
    assert found.met


@pytest.mark.parametrize(("worse", "met"), [(0.0, True), (-0.1, True), (0.009, True), (0.25, False)])
def test_without_spread_the_difference_decides(worse: float, met: bool) -> None:
    found = t_test("accuracy", [(0.5, 0.5 + worse)] * 3, margin=0.01, confidence=0.95)
    assert (found.met, found.bound) == (met, pytest.approx(worse))
    assert found.p == (0 if met else 1)


def test_exactly_the_margin_is_not_met() -> None:
    assert not t_test("accuracy", [(0.5, 0.75)] * 3, margin=0.25, confidence=0.95).met


def test_a_metric_that_is_no_number_is_not_met() -> None:
    found = t_test("spearman", [(None, 0.5), (0.6, 0.5)], margin=0.5, confidence=0.95)
    assert (found.met, found.worse, found.bound) == (False, None, None)
    assert "no number" in found.in_words("valence", Gate())


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(0.8, 0.81), (0.79, 0.81)], ["met. 0.795 against 0.810", "worse by 0.015", "at most 0.047 worse", "0.05"]),
        ([(0.9, 0.81), (0.92, 0.81)], ["better by 0.1", "no worse"]),
        ([(0.9, 0.9), (0.9, 0.9)], ["the same", "no worse"]),
    ],
)
def test_in_words(pairs: list[tuple[float, float]], words: list[str]) -> None:
    said = t_test("accuracy", pairs, 0.05, 0.95).in_words("era", Gate(margin=0.05))
    assert said.startswith("era, accuracy: met")
    for word in ["95% confidence", *words]:
        assert word in said


# A recipe's gates


def gated(tiny: Path, **gates: Gate) -> Recipe:
    return made_recipe(tiny).model_copy(update={"gates": gates, "seed": 5})


def results_of(cells: list[Cell], own: float, reference: float) -> list[tuple[Cell, CellResult | None]]:
    found: list[tuple[Cell, CellResult | None]] = []
    for cell in cells:
        value = (own if cell.variant == "own" else reference) + 0.01 * (cell.recipe.seed - 5)
        found.append((cell, made_result(cell, short=("spearman", value), long=("accuracy", 0.5))))
    return found


def test_references_are_shared_and_seeds_paired(tiny: Path) -> None:
    fp32, other = Precision(compute="fp32"), Precision(master_weights="none")
    recipe = gated(tiny, a=Gate(seeds=2), b=Gate(seeds=3, reference=fp32), c=Gate(seeds=2, reference=other))
    cells = gate_cells(recipe)
    assert len(cells) == 3 + 2 + 3 + 2
    keys = {cell.key for cell in cells}
    assert len(keys) == 3 + 3 + 2
    assert [cell.recipe.seed for cell in cells[:3]] == [5, 6, 7]
    assert all(cell.recipe.precision == fp32 for cell in cells[3:8])


def test_all_tasks_of_a_gate_must_pass_but_only_those(tiny: Path) -> None:
    recipe = gated(
        tiny, every=Gate(seeds=3), one=Gate(seeds=3, tasks=("long",)), loose=Gate(seeds=2, margin=0.2)
    )  # fmt: skip
    found = verdicts_of(recipe, results_of(gate_cells(recipe), 0.7, 0.8))
    assert {name: verdict.met for name, verdict in found.items()} == {"every": False, "one": True, "loose": True}
    assert list(found["one"].tasks) == ["long"]
    assert found["every"].tasks["short"].worse == pytest.approx(0.1)
    assert len(found["loose"].tasks["short"].pairs) == 2
    said = found["every"].as_dict()
    assert said["met"] is False
    assert "one-sided paired t-test" in said["tested"]


def test_a_failed_run_gives_no_verdict(tiny: Path) -> None:
    recipe = gated(tiny, parity=Gate(seeds=2))
    found = results_of(gate_cells(recipe), 0.7, 0.7)
    found[3] = (found[3][0], failed_result(found[3][0], "step 3: the loss is nan"))
    with pytest.raises(RunFailed, match="reference of parity, seed 6: step 3: the loss is nan"):
        verdicts_of(recipe, found)
