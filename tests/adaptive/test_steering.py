"""Steering: when a run changes its weights and factors, and that what it saved or wrote leads the same way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lmrecipes.adaptive.loss_weighting import rounded
from lmrecipes.adaptive.plan import Entry, FactorsEntry, WeightsEntry
from lmrecipes.adaptive.steering import Steering
from lmrecipes.data.interleave import Stage
from lmrecipes.data.mixture import Mixture, Supply
from lmrecipes.problems import InputError
from lmrecipes.recipe import ADAPTIVE_LAG, Recipe

TASKS = ("a", "b", "c")
STEPS = 60
EXAMPLES = 16
ELEMENTS = {"a": 8, "b": 7, "c": 1}


def recipe(**changes: Any) -> Recipe:
    source = {"files": "rows.jsonl"}
    tasks = {"a": 0.5, "b": 0.45, "c": 0.05}
    content: dict[str, Any] = {
        "name": "steered",
        "tasks": {name: {"kind": "regression", "weight": weight, "source": source} for name, weight in tasks.items()},
        "batch": {"examples": EXAMPLES},
        "schedule": {"steps": STEPS},
        "mixture": {"adaptive": {"method": "odm", "every": 5, "warmup_fraction": 0.1}},
    }
    return Recipe.model_validate({**content, **changes})


def steering(asked: Recipe, replayed: list[Entry] | None = None) -> Steering:
    mixture = Mixture.fixed(TASKS, (100, 90, 10), (0.5, 0.45, 0.05), 3)
    return Steering(asked, mixture, {"a": 2.0, "b": 1.0, "c": 1.0}, replayed)


def losses(step: int) -> dict[str, float]:
    """In the tasks' own units; `c` is in every third step only."""
    found = {"a": 2 * 0.97**step, "b": 0.995**step, "c": 0.99**step}
    return {task: loss for task, loss in found.items() if task != "c" or step % 3 == 0}


def run(steered: Steering, start: int, stop: int) -> dict[int, dict[str, float] | None]:
    """What the loop does; the factors in force by step."""
    used = {}
    for number in range(start + 1, stop + 1):
        used[number] = steered.factors(number)
        steered.observe(losses(number), ELEMENTS)
        if steered.due(number):
            steered.follow(steered.decide(number))
    return used


def order(steered: Steering) -> list[list[int]]:
    return [part.tolist() for part in steered.mixture.at(np.arange(STEPS * EXAMPLES))]


BOTH = {"loss_weighting": {"method": "dwa", "every": 4}}


@pytest.mark.parametrize("method", ["odm", "ado"])
def test_weights_change_after_the_warm_up_beyond_what_is_under_way(method: str) -> None:
    steered = steering(recipe(mixture={"adaptive": {"method": method, "every": 5, "warmup_fraction": 0.1}}))
    before = order(steered)
    run(steered, 0, STEPS)
    changes = [entry for entry in steered.plan if isinstance(entry, WeightsEntry)]
    assert changes == steered.plan
    first = 15 if method == "odm" else 30  # the first round that began after step 6; ado needs four of them
    assert changes[0].step == first
    assert changes[-1].step <= STEPS - ADAPTIVE_LAG, "later ones would not take effect"
    for entry in changes:
        assert entry.start == (entry.step + ADAPTIVE_LAG) * EXAMPLES
        assert min(entry.weights.values()) >= 1
        assert entry.method == method
    after = order(steered)
    begins = changes[0].start
    assert [part[:begins] for part in after] == [part[:begins] for part in before]
    assert after != before


def test_weights_follow_what_is_learned() -> None:
    steered = steering(recipe())
    run(steered, 0, STEPS)
    last = steered.plan[-1]
    assert isinstance(last, WeightsEntry)
    assert last.weights["b"] > last.weights["a"], "a is learned, b is not"
    shares = steered.mixture.shares_at(last.start)
    assert shares == pytest.approx({task: w / sum(last.weights.values()) for task, w in last.weights.items()}, abs=1e-6)


def test_the_floor_is_of_the_starting_share() -> None:
    steered = steering(recipe(mixture={"adaptive": {"method": "odm", "every": 5, "floor": 0.9}}))
    run(steered, 0, STEPS)
    for entry in steered.plan:
        assert isinstance(entry, WeightsEntry)
        assert entry.weights["a"] / sum(entry.weights.values()) > 0.45 * 0.98
        assert entry.weights["b"] / sum(entry.weights.values()) > 0.405 * 0.98


def test_factors_hold_from_the_next_step() -> None:
    steered = steering(recipe(mixture={}, **BOTH))
    used = run(steered, 0, STEPS)
    assert all(isinstance(entry, FactorsEntry) for entry in steered.plan)
    assert used[1] == used[8] == dict.fromkeys(TASKS, 1.0), "dwa needs two rounds"
    assert steered.plan[0].step == 8
    for entry in steered.plan:
        assert isinstance(entry, FactorsEntry)
        assert entry.from_step == entry.step + 1
        assert used[entry.from_step] == entry.factors
        assert entry.factors == {task: rounded(factor) for task, factor in entry.factors.items()}, "three digits"
    assert sum((used[STEPS] or {}).values()) == pytest.approx(3, abs=1e-2)


def test_nothing_is_decided_that_changes_nothing() -> None:
    steered = steering(recipe(**BOTH))
    for number in range(1, STEPS + 1):
        steered.observe({"a": 2.0, "b": 1.0, "c": 1.0}, ELEMENTS)
        steered.follow(steered.decide(number))
    (only,) = steered.plan
    assert isinstance(only, WeightsEntry)
    assert only.weights == {"a": 3365, "b": 3365, "c": 3365}, "equal losses draw the bandit equally"


def test_a_run_without_either_has_no_plan() -> None:
    steered = steering(recipe(mixture={}))
    assert not steered.writes
    assert not steered.changes_weights
    assert run(steered, 0, STEPS)[STEPS] is None
    assert not any(steered.due(step) for step in range(STEPS))
    assert steered.plan == []


@pytest.mark.parametrize("weighting", ["uncertainty", "dwa", "famo"])
@pytest.mark.parametrize("mixing", ["odm", "ado"])
@pytest.mark.parametrize("cut", [1, 20, 38, 41, 60])
def test_a_saved_state_goes_on_as_if_nothing_had_happened(mixing: str, weighting: str, cut: int) -> None:
    asked = recipe(
        mixture={"adaptive": {"method": mixing, "every": 5}}, loss_weighting={"method": weighting, "every": 4}
    )
    whole, first, second = steering(asked), steering(asked), steering(asked)
    used = run(whole, 0, STEPS)
    run(first, 0, cut)
    second.restore(json.loads(json.dumps(first.state())))
    assert run(second, cut, STEPS) == {number: used[number] for number in range(cut + 1, STEPS + 1)}
    assert second.plan == whole.plan
    assert second.state() == whole.state()
    assert order(second) == order(whole)


def test_a_replayed_plan_gives_the_same_run_and_decides_nothing() -> None:
    whole = steering(recipe(**BOTH))
    used = run(whole, 0, STEPS)
    again = steering(recipe(mixture={"replay": "plan.jsonl"}), whole.plan)
    assert order(again) == order(whole), "the whole order is known from the start"
    assert again.writes
    assert run(again, 0, STEPS) == used
    assert again.plan == whole.plan


def test_a_replay_resumes_with_the_plan_it_began_with() -> None:
    whole = steering(recipe(**BOTH))
    run(whole, 0, STEPS)
    asked = recipe(mixture={"replay": "plan.jsonl"})
    begun, resumed = steering(asked, whole.plan), steering(asked, whole.plan)
    resumed.restore(begun.state())
    assert resumed.plan == whole.plan
    assert order(resumed) == order(whole)
    with pytest.raises(InputError, match=r"plan\.jsonl is not what it was when the run started"):
        steering(asked, whole.plan[:-1]).restore(begun.state())


def capped(cap: int) -> Mixture:
    return Mixture(
        TASKS, [Supply(100, 100, cap=cap), Supply(90, 90), Supply(10, 10)], [Stage(0, (10, 9, 1))], 3, EXAMPLES
    )


@pytest.mark.parametrize("cap, changes", [(479, True), (481, False)])
def test_a_task_that_is_used_up_changes_the_shares(cap: int, changes: bool) -> None:
    """Half of the 960 samples are of `a`."""
    assert Steering(recipe(mixture={}), capped(cap), dict.fromkeys(TASKS, 1.0)).changes_weights is changes


def test_an_exhausted_task_has_no_weight() -> None:
    steered = Steering(recipe(), capped(150), {"a": 2.0, "b": 1.0, "c": 1.0})
    run(steered, 0, STEPS)
    gone = steered.mixture.exhausted_before(STEPS * EXAMPLES)["a"]
    for entry in steered.plan:
        assert isinstance(entry, WeightsEntry)
        assert (entry.weights["a"] == 0) == (entry.start >= gone)
        assert sum(entry.weights.values()) == pytest.approx(10_000, rel=0.01)


def test_a_plan_that_uses_up_its_tasks_is_refused() -> None:
    only_a: list[Entry] = [WeightsEntry(step=2, start=160, weights={"a": 1, "b": 0, "c": 0}, method="odm")]
    with pytest.raises(InputError, match=r"from step 18 of 60 on every task that the plan draws is used up"):
        Steering(recipe(mixture={"replay": "plan.jsonl"}), capped(200), dict.fromkeys(TASKS, 1.0), only_a)


def test_a_state_of_before_there_was_steering() -> None:
    steered = steering(recipe())
    steered.restore({})
    assert steered.plan == []


def test_losses_that_are_not_finite_are_left_out() -> None:
    one, other = steering(recipe()), steering(recipe())
    for number in range(1, STEPS + 1):
        for steered in (one, other):
            steered.observe(losses(number), ELEMENTS)
        one.observe({"a": float("nan"), "b": float("inf")}, ELEMENTS)
        for steered in (one, other):
            steered.follow(steered.decide(number))
    assert one.plan == other.plan != []


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loader": {"prefetch": ADAPTIVE_LAG + 1}}, "at most 8 steps are assembled ahead, found 9"),
        ({"mixture": {"replay": "p"}, "loss_weighting": {"method": "dwa"}}, "loss_weighting.method: mixture.replay"),
    ],
)
def test_what_excludes_each_other_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(**changes)


def test_the_loader_may_go_as_far_ahead_as_changes_are_announced() -> None:
    assert recipe(loader={"prefetch": ADAPTIVE_LAG}).loader.prefetch == ADAPTIVE_LAG
    assert recipe(mixture={}, loader={"prefetch": 50}).loader.prefetch == 50
