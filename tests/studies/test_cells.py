"""Which runs a study is made of, and what its results say over seeds."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from made_study import VARIANTS, failed_result, made_recipe, made_result, write_recipe

from lmrecipes.problems import InputError
from lmrecipes.recipe_files import RecipeFile, find_recipe
from lmrecipes.studies.cells import Cell, fields_of, plan_cells, recipe_key, with_seeds
from lmrecipes.studies.folder import open_study, with_results
from lmrecipes.studies.page import charts_of
from lmrecipes.studies.record import CellResult, rows_of, summary
from lmrecipes.studies.show import costs_cells, markdown, plus_minus, results_cells
from lmrecipes.studies.start import StudyOptions

LAUNCH = {"processes": 1, "zero": None}


@pytest.fixture
def file(tiny: Path, tmp_path: Path) -> RecipeFile:
    """The recipe file with all variants."""
    return find_recipe(str(write_recipe(tiny, tmp_path / "recipe")))


def plan(file: RecipeFile, *vary: str, variants: tuple[str, ...] = (), args: tuple[str, ...] = ()) -> list[Cell]:
    return plan_cells(file, variants, vary, 2, StudyOptions, args)


def test_variants_times_values_times_seeds(file: RecipeFile) -> None:
    cells = plan(file)
    assert list(dict.fromkeys(cell.variant for cell in cells)) == list(VARIANTS)
    assert [cell.recipe.seed for cell in cells] == [0, 1] * len(VARIANTS)
    grid = plan(file, "optimizer.lr=1e-3,1e-2", "optimizer.betas=0.9 0.98,0.8 0.9", variants=("fp32", "recipe"))
    assert len(grid) == 2 * 2 * 2 * 2
    assert grid[0].row == "fp32, lr 1e-3, betas 0.9 0.98"
    assert grid[-1].recipe.optimizer.betas == (0.8, 0.9)
    assert grid[-1].recipe.precision.compute == "bf16"
    assert {cell.recipe.optimizer.lr for cell in grid} == {1e-3, 1e-2}
    assert len({cell.key for cell in grid}) == len(grid)


def test_flags_hold_for_all_cells_and_rows_have_names_of_their_own(file: RecipeFile) -> None:
    args = ("--schedule.steps", "4", "--seed", "7", "--precision.compute", "bf16")
    vary = ("tasks.short.weight=1,2", "tasks.long.weight=1", "model.activation-checkpointing=true")
    cells = plan(file, *vary, variants=("pure",), args=args)
    assert {(cell.recipe.schedule.steps, cell.recipe.model.activation_checkpointing) for cell in cells} == {(4, True)}
    assert [cell.recipe.seed for cell in cells] == [7, 8, 7, 8]
    assert len({cell.row for cell in cells}) == 2
    assert "tasks.short.weight 2" in cells[-1].row


def test_all_mistakes_come_at_once(file: RecipeFile) -> None:
    with pytest.raises(InputError) as refused:
        plan_cells(file, ("fp23",), ("optimizer.lrr=1", "lr", "seed="), 0, StudyOptions, ())
    said = str(refused.value)
    assert len(refused.value.problems) == 5
    assert "Did you mean `fp32`?" in said
    assert "Did you mean `optimizer.lr`?" in said
    with pytest.raises(InputError, match=r"optimizer\.lr") as wrong:
        plan(file, "optimizer.lr=-1,0.1")
    assert len(wrong.value.problems) == 1


def test_no_cell_counts_twice(file: RecipeFile) -> None:
    cells = plan(file, "optimizer.lr=1e-3, 1e-2,1e-3", variants=("fp32", "fp32"))
    assert [(cell.row, cell.recipe.seed) for cell in cells] == [
        ("fp32, lr 1e-3", 0), ("fp32, lr 1e-3", 1), ("fp32, lr 1e-2", 0), ("fp32, lr 1e-2", 1)
    ]  # fmt: skip
    with pytest.raises(InputError, match="varied twice"):
        plan(file, "optimizer.lr=1", "optimizer.lr=2")


def test_flags_that_would_say_less_than_they_seem_to_are_refused(file: RecipeFile) -> None:
    with pytest.raises(InputError, match="--vary: given twice"):
        plan(file, args=("--vary", "optimizer.lr=1", "--vary=seed=1"))
    with pytest.raises(InputError, match="write --variants pure"):
        plan(file, args=("--pure",))


def test_every_field_can_be_varied(tiny: Path) -> None:
    fields = fields_of(made_recipe(tiny))
    for field in ("seed", "optimizer.lr", "tasks.short.weight", "precision.layers", "tasks.long.source.chat.layout"):
        assert field in fields


def test_a_cell_is_known_by_what_it_trains(tiny: Path) -> None:
    one, fp32 = made_recipe(tiny), made_recipe(tiny, "fp32")
    same = made_recipe(tiny, **{"name": "other", "tracking.log_every": 7, "evaluation.every": 3, "checkpoint.every": 2,
                                "gates": {"parity": {}}})  # fmt: skip
    assert recipe_key(one) == recipe_key(same) != recipe_key(fp32)
    for change in ({"seed": 1}, {"evaluation.examples": 7}, {"batch.micro_examples": 8}, {"optimizer.lr": 1e-5}):
        assert recipe_key(made_recipe(tiny, **change)) != recipe_key(one)


def test_what_was_found_is_kept_and_shared_by_equal_cells(tiny: Path, tmp_path: Path) -> None:
    cells = with_seeds("a", (), made_recipe(tiny), 2) + with_seeds("b", (), made_recipe(tiny), 3)
    folder = open_study(tmp_path / "s", cells, LAUNCH)
    assert folder.cells() == cells
    assert folder.results() == []
    folder.write(cells, [made_result(cells[0], short=("spearman", 0.5))])
    again = open_study(tmp_path / "s", cells, LAUNCH)
    found = list(with_results(cells, again.results()))
    assert [(cell.row, cell.recipe.seed) for cell, result in found if result is not None] == [("a", 0), ("b", 0)]
    assert [result.row for _, result in found if result is not None] == ["a", "b"]
    with pytest.raises(InputError, match="ran with 1 process"):
        open_study(tmp_path / "s", cells, {"processes": 2, "zero": 1})
    with folder.alone(), pytest.raises(InputError, match="another study runs"):
        open_study(tmp_path / "s", cells[:1], LAUNCH)
    assert folder.cells() == cells
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    with pytest.raises(InputError, match="holds no study"):
        open_study(tmp_path / "mine", cells, LAUNCH)


# What results say


def made_results(tiny: Path) -> list[CellResult]:
    good = with_seeds("good", (), made_recipe(tiny), 3)
    bad = with_seeds("b|d", (), made_recipe(tiny, "fp32"), 2)
    values = [0.5, 0.6, 0.8]
    results = [
        made_result(c, short=("spearman", v), long=("perplexity", 20.0)) for c, v in zip(good, values, strict=True)
    ]
    results += [made_result(bad[0], short=("spearman", None), long=("perplexity", 30.0))]
    results += [failed_result(bad[1], "step 3: the loss is nan")]
    return results


def test_rows_over_seeds(tiny: Path) -> None:
    rows = rows_of(made_results(tiny))
    assert [(row.label, len(row.finished), len(row.failed)) for row in rows] == [("good", 3, 0), ("b|d", 1, 1)]
    spread = rows[0].metric("short")
    assert spread is not None
    assert spread.mean == pytest.approx(1.9 / 3)
    assert spread.deviation == pytest.approx(statistics.stdev([0.5, 0.6, 0.8]))
    assert rows[1].metric("short") is None
    assert plus_minus(spread) == "0.633 ± 0.153"
    assert plus_minus(rows[1].metric("long")) == "30.00"
    said = summary(made_results(tiny))
    assert said["rows"][0]["metrics"]["short"] == {
        "metric": "spearman", "mean": spread.mean, "deviation": spread.deviation,
    }  # fmt: skip
    assert said["rows"][1]["failed"] == 1
    assert len(said["cells"]) == 5


def test_a_loss_that_is_no_number_leaves_the_others(tiny: Path) -> None:
    results = [
        replace(result, loss=loss) for result, loss in zip(made_results(tiny), [math.inf, 1.0, 3.0], strict=False)
    ]
    spread = rows_of(results)[0].loss
    assert spread is not None
    assert (spread.mean, spread.count) == (2.0, 2)
    assert summary(results)["rows"][0]["loss"]["mean"] == 2.0


def test_tables(tiny: Path) -> None:
    rows = rows_of(made_results(tiny))
    assert results_cells(rows)[0] == ["", "short, spearman", "long, perplexity", "final loss", "skipped", "failed"]
    assert results_cells(rows)[2] == ["b|d", "–", "30.00", "0.500", "", "1 of 2"]  # noqa: RUF001
    assert costs_cells(rows)[0] == [
        "", "ms/step", "x first", "weights", "gradients", "optimizer", "activations", "in all", "MB"
    ]  # fmt: skip
    assert costs_cells(rows)[1] == ["good", "250.0", "1.00", "4.00", "4.00", "8.00", "10.00", "26.00", "0.0"]
    page = markdown(made_recipe(tiny), rows, {"device": "cpu", "threads": 2})
    assert "b\\|d" in page
    assert "seed 1, failed: step 3: the loss is nan." in page
    assert "b|d, seed 0: short gave no number" in page
    charts = charts_of(rows)
    assert [chart["title"] for chart in charts] == [
        "short, spearman", "long, perplexity", "Bytes per parameter", "Seconds per step",
    ]  # fmt: skip
    assert charts[0]["lines"][0]["error"][0] == pytest.approx(0.1528, abs=1e-4)
    assert sum(line["x"][0] for line in charts[2]["lines"]) == pytest.approx(26)
