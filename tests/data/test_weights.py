"""Laws, units, caps and schedules: what a recipe's words mean in stages, and what it is told when they cannot hold."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.mixture import Supply
from lmrecipes.data.weights import build_mixture, cap_of, stages
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe


def recipe(tasks: dict[str, dict[str, Any]], steps: int = 100, batch: int = 10, **mixture: Any) -> Recipe:
    kind = {"kind": "regression", "source": {"files": "x.jsonl"}}
    return Recipe.model_validate(
        {
            "name": "r",
            "tasks": {name: kind | fields for name, fields in tasks.items()},
            "mixture": mixture,
            "schedule": {"steps": steps},
            "batch": {"examples": batch},
        }
    )


def supplies(of: Recipe, **sizes: tuple[int, int]) -> dict[str, Supply]:
    """(rows, size of a row) of each task."""
    cost = of.mixture.unit != "examples"
    return {
        name: Supply(
            rows, rows * (size if cost else 1), cap_of(of, name, rows), (lambda r, s=size: r * 0 + s) if cost else None
        )
        for name, (rows, size) in sizes.items()
    }


def shares(of: Recipe, **sizes: tuple[int, int]) -> dict[str, float]:
    weights = stages(of, supplies(of, **sizes))[0].weights
    return {task: weight / sum(weights) for task, weight in zip(of.tasks, weights, strict=True)}


def test_explicit_weights_are_the_shares() -> None:
    assert shares(recipe({"a": {"weight": 3}, "b": {}}), a=(100, 1), b=(10_000, 1)) == {"a": 0.75, "b": 0.25}


def test_laws_multiply_by_sizes_in_the_unit() -> None:
    tasks: dict[str, dict[str, Any]] = {"a": {"weight": 2}, "b": {}}
    assert shares(recipe(tasks, law="proportional"), a=(100, 9), b=(300, 1))["a"] == pytest.approx(200 / 500)
    in_tokens = recipe(tasks, law="proportional", unit="tokens")
    assert shares(in_tokens, a=(100, 9), b=(300, 1))["a"] == pytest.approx(1800 / 2100)
    assert shares(recipe(tasks, temperature=2), a=(100, 1), b=(10_000, 1))["a"] == pytest.approx(20 / 120)
    assert shares(recipe(tasks, temperature=1), a=(100, 1), b=(300, 1))["a"] == pytest.approx(200 / 500)
    capped = recipe(tasks, temperature=2, size_cap=400)
    assert shares(capped, a=(100, 1), b=(10_000, 1))["a"] == pytest.approx(20 / 40)


def test_unimax_gives_equal_budgets_up_to_the_cap() -> None:
    """1000 draws, at most 2 passes: 10 rows give 20, 100 rows give 200, the others share the remaining 780."""
    made = recipe({"tiny": {}, "small": {}, "large": {}, "huge": {}}, law="unimax", max_epochs=2)
    sizes = {"tiny": (10, 1), "small": (100, 1), "large": (1000, 1), "huge": (10**6, 1)}
    found = shares(made, **sizes)
    assert found == pytest.approx({"tiny": 0.02, "small": 0.2, "large": 0.39, "huge": 0.39})
    assert build_mixture(made, supplies(made, **sizes)).counts(1000) == {
        "tiny": 20, "small": 200, "large": 390, "huge": 390
    }  # fmt: skip


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(1, 5000), min_size=1, max_size=8),
    lengths=st.lists(st.integers(1, 50), min_size=8, max_size=8),
    epochs=st.floats(0.5, 5),
    unit=st.sampled_from(["examples", "tokens"]),
)
def test_unimax_fills_the_run_within_its_caps(rows: list[int], lengths: list[int], epochs: float, unit: str) -> None:
    made = recipe({f"t{i}": {} for i in range(len(rows))}, law="unimax", max_epochs=epochs, unit=unit, steps=20)
    given_ = supplies(made, **{f"t{i}": (n, lengths[i]) for i, n in enumerate(rows)})
    try:
        mixed = build_mixture(made, given_)
    except InputError:
        assert sum(supply.cap or 0 for supply in given_.values()) < 200 or epochs * min(rows) < 1
        return
    counts = mixed.counts(200)
    budgets = {task: count * given_[task].total / given_[task].rows for task, count in counts.items()}
    open_ones = [task for task, count in counts.items() if count < (given_[task].cap or 0) - 3]
    assert all(count <= (given_[task].cap or 0) for task, count in counts.items())
    slack = 3 * max(lengths) if unit == "tokens" else 3
    for task in open_ones:
        assert budgets[task] >= max(budgets.values()) - slack, "no one gets more than a task that has some left"


def test_a_schedule_of_constant_stages() -> None:
    made = recipe(
        {"a": {"weight": 1}, "b": {"weight": 1}, "c": {"weight": 0}},
        schedule=[{"at": 0.25, "weights": {"a": 3}}, {"at": 0.8, "weights": {"c": 2, "a": 0}}],
    )
    found = stages(made, supplies(made, a=(9, 1), b=(9, 1), c=(9, 1)))
    assert [(stage.start, stage.weights) for stage in found] == [
        (0, (1, 1, 0)),
        (250, (3, 1, 0)),
        (800, (0, 1, 2)),
    ]


def test_a_straight_line_between_waypoints() -> None:
    made = recipe(
        {"a": {"weight": 1}, "b": {"weight": 1}},
        between="linear",
        schedule=[{"at": 0.5, "weights": {"a": 0}}, {"at": 0.9, "weights": {"a": 4}}],
    )
    given_ = supplies(made, a=(1000, 1), b=(1000, 1))
    found = stages(made, given_)
    assert [stage.start for stage in found] == [*range(0, 500, 10), *range(500, 910, 10)], "a stage for each step"
    parts = {stage.start: stage.weights[0] / sum(stage.weights) for stage in found}
    for step, weight in [(0, 0.99), (25, 0.49), (49, 0.01), (50, 0.05), (89, 3.95), (90, 4)]:
        assert parts[step * 10] == pytest.approx(weight / (weight + 1))
    mixed = build_mixture(made, given_)
    realised = np.array([list(mixed.counts(10 * step).values()) for step in range(101)])
    goals = np.array([list(mixed.targets(10 * step).values()) for step in range(101)])
    assert np.abs(realised - goals).max() < 1.5
    exact = 10 * sum(w / (w + 1) for w in (max(1 - (s + 0.5) / 50, 0) for s in range(50)))
    assert goals[50, 0] == pytest.approx(exact, abs=1e-3)


def test_a_long_line_has_few_stages() -> None:
    made = recipe({"a": {}, "b": {}}, steps=10_000, between="linear", schedule=[{"at": 0.99, "weights": {"a": 0}}])
    assert 190 <= len(stages(made, supplies(made, a=(9, 1), b=(9, 1)))) <= 202


def test_caps_are_whole_rows() -> None:
    made = recipe({"a": {"max_epochs": 1.5}, "b": {}}, max_epochs=0.001)
    assert cap_of(made, "a", 101) == 151
    assert cap_of(made, "b", 101) == 1
    assert cap_of(recipe({"a": {}}), "a", 101) is None
    assert cap_of(recipe({"a": {"max_epochs": 0.1}}), "a", 30) == 3, "not 2 for 0.1 x 30 in floating point"


def test_caps_that_cannot_fill_the_run_are_named_with_the_setting() -> None:
    made = recipe({"a": {"max_epochs": 2}, "b": {}}, max_epochs=1)
    with pytest.raises(InputError) as error:
        build_mixture(made, supplies(made, a=(100, 1), b=(300, 1)))
    (problem,) = error.value.problems
    assert problem.where == "mixture.max_epochs"
    assert (
        problem.what
        == "the run draws 1,000 examples, max_epochs allows 500: a 200 (100 rows x 2), b 300 (300 rows x 1)"
    )
    assert "tasks.b.max_epochs to 2.67" in problem.fix
    assert "schedule.steps to 50" in problem.fix
    enough = recipe({"a": {"max_epochs": 2}, "b": {"max_epochs": 2.67}})
    assert sum(build_mixture(enough, supplies(enough, a=(100, 1), b=(300, 1))).counts(1000).values()) == 1000
    shorter = recipe({"a": {"max_epochs": 2}, "b": {}}, max_epochs=1, steps=50)
    build_mixture(shorter, supplies(shorter, a=(100, 1), b=(300, 1)))


def test_weights_that_lead_nowhere_are_named_with_the_step() -> None:
    made = recipe({"a": {"max_epochs": 2}, "b": {"weight": 0}})
    with pytest.raises(InputError) as error:
        build_mixture(made, supplies(made, a=(100, 1), b=(300, 1)))
    (problem,) = error.value.problems
    assert "in step 21 of 100" in problem.what
    assert problem.id == "mixture-supply"


def test_a_task_without_tokens() -> None:
    made = recipe({"a": {}, "b": {}}, unit="supervised_tokens")
    with pytest.raises(InputError, match=r"tasks\.b: its 300 rows hold no supervised tokens"):
        build_mixture(made, supplies(made, a=(100, 1), b=(300, 0)))


def test_build_mixture_takes_window_and_seed_from_the_recipe() -> None:
    made = recipe({"a": {}, "b": {"weight": 3}}).model_copy(update={"seed": 5})
    mixed = build_mixture(made, supplies(made, a=(30, 1), b=(10, 1)))
    assert (mixed.tasks, mixed.rows, mixed.seed, mixed.window) == (("a", "b"), (30, 10), 5, 10)
    assert mixed.shares_at(0) == {"a": 0.25, "b": 0.75}
