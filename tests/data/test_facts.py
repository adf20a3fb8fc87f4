"""What a mixture means in numbers: planned facts are what the stream then draws, and surprises are said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_recipe

from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.facts import MANY_EPOCHS, mixture_facts, mixture_of, mixture_warnings, planned
from lmrecipes.data.mixture import Supply
from lmrecipes.data.weights import build_mixture, cap_of
from lmrecipes.recipe import Recipe

UNITS = ["examples", "tokens", "supervised_tokens"]


def recipe(tasks: Mapping[str, dict[str, Any]], steps: int = 100, batch: int = 10, **mixture: Any) -> Recipe:
    sources = {name: {"kind": "regression", "source": {"files": "x"}, **task} for name, task in tasks.items()}
    size = {"examples": batch}
    return Recipe.model_validate(
        {"name": "r", "tasks": sources, "mixture": mixture, "batch": size, "schedule": {"steps": steps}}
    )


def facts_of(made: Recipe, **rows: int) -> dict[str, dict[str, Any]]:
    supplies = {name: Supply(count, count, cap_of(made, name, count)) for name, count in rows.items()}
    return planned(made, build_mixture(made, supplies))


def warnings_of(made: Recipe, **rows: int) -> list[tuple[str, str]]:
    found = mixture_warnings(made, facts_of(made, **rows))
    assert all(problem.severity == "warning" and problem.fix for problem in found)
    return [(problem.id, problem.where) for problem in found]


def drawn(made: Recipe, tasks: Mapping[str, EncodedTask]) -> tuple[np.ndarray, np.ndarray]:
    """Task and tokens of every sample of the run, in order: [samples] each."""
    mixture = mixture_of(made, tasks)
    which, rows = mixture.at(np.arange(made.schedule.steps * made.batch.examples))
    tokens = np.zeros(len(rows), np.int64)
    for number, name in enumerate(mixture.tasks):
        tokens[which == number] = tasks[name].train.lengths_of(rows[which == number])
    return which, tokens


@pytest.mark.parametrize("unit", UNITS)
def test_the_plan_is_what_the_run_then_draws(unit: str, tiny: Path) -> None:
    waypoints = [{"at": 0.5, "weights": {"rare": 1}}]
    mixture = {"unit": unit, "schedule": waypoints, "max_epochs": 6}
    made = Recipe.model_validate(make_recipe(tiny, mixture=mixture, **{"schedule.steps": 120}))
    tasks = encode_tasks(made, progress=False)
    facts = mixture_facts(made, tasks)
    which, tokens = drawn(made, tasks)
    for number, (name, fact) in enumerate(facts.items()):
        mine = which == number
        assert fact["examples"] == mine.sum()
        assert fact["epochs"] == pytest.approx(mine.sum() / len(tasks[name].train))
        assert fact["token_share"] == pytest.approx(tokens[mine].sum() / tokens.sum(), abs=0.02), "by mean length"
        realised = tokens[mine].sum() / tokens.sum() if unit == "tokens" else mine.mean()
        assert fact["share"] == pytest.approx(realised, abs=0.005), "also where a cap ended the task"
        last = int(np.flatnonzero(mine).max())
        assert fact["exhausted_at"] in (None, last // 16 + 1)
    assert facts["rare"]["exhausted_at"] is not None
    assert sum(fact["share"] for fact in facts.values()) == pytest.approx(1, abs=1e-6)
    assert sum(fact["token_share"] for fact in facts.values()) == pytest.approx(1)


def test_counts_of_the_data_come_along(tiny: Path) -> None:
    made = Recipe.model_validate(make_recipe(tiny, **{"model.max_length": 10}))
    tasks = encode_tasks(made, progress=False)
    fact = mixture_facts(made, tasks)["long"]
    assert fact["truncated"] > 0
    assert fact["tokens_per_row"] == fact["tokens"] / fact["rows"] <= 10
    assert (fact["skipped"], fact["masked"], fact["supervised"]) == (0, 0, fact["rows"])
    assert set(fact["duplicates"]) == {"train/validation", "train/test", "validation/test"}


@settings(deadline=None)
@given(
    rows=st.lists(st.integers(1, 400), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    cap=st.integers(1, 5),
    batch=st.integers(1, 17),
)
def test_a_task_that_ends_is_said_to_end_where_it_does(
    rows: list[int], weights: list[int], cap: int, batch: int
) -> None:
    tasks = {f"t{i}": {"weight": weights[i], **({"max_epochs": cap} if i else {})} for i in range(len(rows))}
    made = recipe(tasks, steps=40, batch=batch)
    supplies = {f"t{i}": Supply(n, n, cap_of(made, f"t{i}", n)) for i, n in enumerate(rows)}
    mixture = build_mixture(made, supplies)
    which, _ = mixture.at(np.arange(40 * batch))
    for number, fact in enumerate(planned(made, mixture).values()):
        mine = np.flatnonzero(which == number)
        assert fact["examples"] == len(mine)
        used_up = number > 0 and len(mine) == cap * rows[number]
        assert fact["exhausted_at"] == (mine.max() // batch + 1 if used_up else None)
        if used_up and fact["exhausted_at"] < 40:
            step, share = fact["shares"][-1]
            assert share == 0 and step <= max(f["exhausted_at"] or 0 for f in planned(made, mixture).values())


def test_shares_over_the_run() -> None:
    waypoints = [{"at": 0.3, "weights": {"a": 3}}, {"at": 0.6, "weights": {"b": 0}}]
    facts = facts_of(recipe({"a": {}, "b": {}}, schedule=waypoints), a=1000, b=1000)
    assert facts["a"]["shares"] == [[0, 0.5], [30, 0.75], [60, 1]]
    assert facts["b"]["shares"] == [[0, 0.5], [30, 0.25], [60, 0]]
    assert facts["a"]["share"] == pytest.approx((0.5 * 30 + 0.75 * 30 + 40) / 100)
    assert facts_of(recipe({"a": {}, "b": {}}), a=9, b=9)["a"]["shares"] == [[0, 0.5]]


def test_nothing_is_said_of_a_usual_mixture() -> None:
    assert warnings_of(recipe({"a": {}, "b": {"weight": 2}}), a=1000, b=20) == []


def test_repeats_are_said_from_forty_on() -> None:
    made = recipe({"a": {}, "b": {}})
    assert MANY_EPOCHS == 40
    assert warnings_of(made, a=13, b=1000) == []  # 500 / 13 = 38.5
    assert warnings_of(made, a=12, b=1000) == [("mixture-repeats", "tasks.a.weight")]  # 41.7


def test_a_task_that_is_hardly_drawn_or_never() -> None:
    assert warnings_of(recipe({"a": {}, "b": {"weight": 0.009}}), a=999, b=99) == [("mixture-little", "tasks.b.weight")]
    assert warnings_of(recipe({"a": {}, "b": {"weight": 0.011}}), a=999, b=99) == []
    assert warnings_of(recipe({"a": {}, "b": {"weight": 0}}), a=999, b=99) == [("mixture-unused", "tasks.b.weight")]


def test_exhaustion_is_said_but_not_at_the_very_end_nor_of_unimax() -> None:
    made = recipe({"a": {"max_epochs": 2}, "b": {}})
    assert warnings_of(made, a=100, b=1000) == [("mixture-exhausted", "tasks.a.max_epochs")]
    assert warnings_of(made, a=250, b=1000) == []
    (problem,) = mixture_warnings(made, facts_of(made, a=100, b=1000))
    assert "max_epochs is reached in step 40 of 100, after 200 examples" in problem.what
    unimax = recipe({"a": {}, "b": {}}, law="unimax", max_epochs=2)
    assert facts_of(unimax, a=100, b=1000)["a"]["examples"] == 200
    assert warnings_of(unimax, a=100, b=1000) == []


def test_masked_rows_are_said() -> None:
    made = recipe({"a": {}, "b": {}})
    facts = facts_of(made, a=100, b=100)
    facts["b"] |= {"masked_rows": {"train": 1007, "test": 2}, "masked_places": ["x.jsonl line 3", "x.jsonl line 9"]}
    (problem,) = mixture_warnings(made, facts)
    assert (problem.id, problem.where) == ("mixture-masked", "tasks.b.max_length")
    assert problem.what.endswith("1,007 rows of train, 2 rows of test (x.jsonl line 3; x.jsonl line 9)")


def test_settings_that_a_short_run_never_comes_to() -> None:
    points = [{"at": 0.5, "weights": {"a": 2}}, {"at": 0.51, "weights": {"a": 3}}, {"at": 0.999, "weights": {"a": 4}}]
    made = recipe({"a": {}, "b": {}}, schedule=points)
    assert warnings_of(made, a=1000, b=1000) == [("mixture-no-effect", "mixture.schedule.2")]
    short = made.model_copy(update={"schedule": made.schedule.model_copy(update={"steps": 10})})
    assert [where for _, where in warnings_of(short, a=1000, b=1000)] == ["mixture.schedule.0", "mixture.schedule.2"]
    for steps, said in [(33, 0), (28, 1)]:  # every 20 steps without a warm-up: the first change holds from step 28 on
        adaptive = recipe({"a": {}, "b": {}}, steps, adaptive={"method": "odm", "warmup_fraction": 0})
        assert warnings_of(adaptive, a=1000, b=1000) == [("mixture-no-effect", "mixture.adaptive.every")] * said
