"""The course of a search and its verdict: what is run, in which order, and when the found weights are recommended."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_search import made_recipe, made_result, only_noise, power_law, searched

from lmrecipes.search.plan import Question, Result, answer, cost, next_proxy, own_shares, proxy_base, proxy_recipe

BASE = made_recipe(a=1, b=1, c=1, d=1)
UNEVEN = [0.02, 0.02, 0.02, 0.3]


def test_from_uniform_weights_the_better_mixture_is_found_and_recommended() -> None:
    _, said = searched(BASE, Question(), power_law(UNEVEN, noise=0.005))
    truth = power_law(UNEVEN, noise=0)
    proxy = proxy_of(BASE)
    at_own, at_found = (truth(shares, proxy).mean() for shares in (own_shares(BASE), said.found.shares))
    best = np.array(UNEVEN) ** (2 / 3)  # where the derivatives of a / sqrt(w) are equal
    at_best = truth(best / best.sum(), proxy).mean()
    assert said.better
    assert at_own - at_found > 0.8 * (at_own - at_best)
    assert said.gain == pytest.approx(at_own - at_found, abs=0.015)
    assert said.found.rank_correlation > 0.9


def proxy_of(base):  # type: ignore[no-untyped-def]
    proxy = next_proxy(base, Question(), [])
    assert proxy is not None
    return proxy


def test_where_weights_change_nothing_the_own_are_kept() -> None:
    said = [searched(BASE, Question(), only_noise(0.02, seed))[1] for seed in range(12)]
    assert sum(answer.better for answer in said) <= 1  # 5% of those that are measured
    assert any(answer.measured is None for answer in said), "no proxies are spent on a promise within the fit's error"
    assert any(answer.measured is not None for answer in said)


def test_at_the_optimum_the_own_are_kept() -> None:
    best = made_recipe(a=1, b=1, c=1, d=1)
    assert not any(searched(best, Question(), power_law([0.1] * 4, 0.005, seed))[1].better for seed in range(10))


def test_the_order_and_the_number_of_proxies() -> None:
    results, _ = searched(BASE, Question(runs=10, repeats=4), power_law(UNEVEN, 0.005))
    assert [r.proxy.kind for r in results] == ["own"] * 4 + ["design"] * 10 + ["found"] * 4
    own, found = results[:4], results[-4:]
    assert [r.proxy.seed for r in own] == [r.proxy.seed for r in found]
    assert own[0].proxy.seed == BASE.seed
    assert len({r.proxy.seed for r in own}) == 4
    assert {r.proxy.seed for r in results[4:14]} == {BASE.seed}
    assert len({r.proxy.shares for r in own}) == len({r.proxy.shares for r in found}) == 1


@settings(deadline=None, max_examples=5)
@given(cut=st.integers(0, 16), shuffled=st.randoms(use_true_random=False))
def test_a_search_that_is_cut_goes_on_to_the_same_end(cut: int, shuffled) -> None:  # type: ignore[no-untyped-def]
    question, losses = Question(runs=10), power_law(UNEVEN, 0.005)
    whole, said = searched(BASE, question, losses)
    kept = whole[:cut]
    shuffled.shuffle(kept)
    saved = [Result.from_dict(result.as_dict()) for result in kept]
    results, again = searched(BASE, question, losses, saved)
    assert Counter(results_key(results)) == Counter(results_key(whole))
    assert again.found.shares.tolist() == said.found.shares.tolist()
    assert (again.gain, again.gain_error) == (said.gain, said.gain_error)


def results_key(results: list[Result]) -> list[tuple[object, ...]]:
    return [(result.proxy, result.scores["a"]["loss"]) for result in results]


def test_more_runs_extend_a_search() -> None:
    losses = power_law(UNEVEN, 0.005)
    short, _ = searched(BASE, Question(runs=8), losses)
    longer, said = searched(BASE, Question(runs=16), losses, short)
    assert Counter(r.proxy.kind for r in longer[len(short) :])["design"] == 8
    assert not any(r.proxy.kind == "own" for r in longer[len(short) :])
    _, from_the_start = searched(BASE, Question(runs=16), losses)
    assert from_the_start.found.shares.tolist() == said.found.shares.tolist()


def test_another_metric_or_target_runs_the_found_weights_alone() -> None:
    losses = power_law(UNEVEN, 0.005)
    results, by_loss = searched(BASE, Question(), losses)
    more, _ = searched(BASE, Question(metric="headline"), losses, results)
    assert {r.proxy.kind for r in more[len(results) :]} <= {"found"}
    more, for_a = searched(BASE, Question(targets=("a",)), losses, results)
    assert {r.proxy.kind for r in more[len(results) :]} == {"found"}
    assert for_a.found.shares[0] > by_loss.found.shares[0]
    assert len(for_a.own) == 1


def test_the_fit_does_not_see_what_it_is_measured_against() -> None:
    question, losses = Question(), power_law(UNEVEN, 0.005)
    results, said = searched(BASE, question, losses)
    luck = [replace(r, scores=made_result(BASE, r.proxy, lambda s, p: np.full(4, 9.0)).scores)
            if r.proxy.kind != "design" else r for r in results]  # fmt: skip
    changed = answer(BASE, question, luck)
    assert changed.found.shares.tolist() == said.found.shares.tolist()
    assert changed.found.gain == said.found.gain
    assert changed.gain == 0


def test_the_gain_and_its_error() -> None:
    """By seed, own costs 1, 2, 3 and found ones 0.5, 0.5, 2.5: the seeds' own differences do not count."""
    uneven = power_law(UNEVEN, 0.0)

    def losses(shares: np.ndarray, proxy) -> np.ndarray:  # type: ignore[no-untyped-def]
        repeats = {"own": [1.0, 2.0, 3.0], "found": found}
        return uneven(shares, proxy) if proxy.kind == "design" else np.full(4, repeats[proxy.kind][proxy.number])

    found = [0.5, 0.5, 2.5]
    _, said = searched(BASE, Question(repeats=3), losses)
    assert said.gain == pytest.approx(2.5 / 3)
    assert said.gain_error == pytest.approx(1 / 3)
    assert not said.better  # 2.5 standard errors, and with three seeds it takes 2.92
    assert said.measured is not None
    assert said.measured.tolist() == pytest.approx([3.5 / 3] * 4)
    assert said.own.tolist() == pytest.approx([2] * 4)
    found = [0.5, 0.8, 2.2]
    assert searched(BASE, Question(repeats=3), losses)[1].better


def test_tasks_of_weight_0_stay_out() -> None:
    base = made_recipe(a=2, off=0, b=1, c=1)
    results, said = searched(base, Question(), power_law([0.1, 0.02, 0.02], 0.001))
    assert len(said.found.shares) == 3
    recipe = proxy_recipe(base, results[5].proxy)
    assert recipe.tasks["off"].weight == 0
    assert [recipe.tasks[name].weight for name in ("a", "b", "c")] == list(results[5].proxy.shares)
    assert len(said.own) == 3


def test_a_proxy_is_the_recipe_but_for_weights_seed_and_length() -> None:
    base, recipe = made_recipe(a=3, b=1), made_recipe(a=3, b=1).model_copy(update={"seed": 7})
    again = proxy_base(recipe, 12, 30)
    assert (again.schedule.steps, again.evaluation.examples, again.evaluation.every) == (12, 30, 0)
    assert (again.tracking.wandb, again.tracking.tensorboard, again.checkpoint.every) == ("off", False, 0)
    assert again.mixture.law == "explicit"
    one = proxy_recipe(base, proxy_of(base))
    assert one.model_dump(exclude={"tasks"}) == base.model_dump(exclude={"tasks"})
    assert {name: task.weight for name, task in one.tasks.items()} == {"a": 0.75, "b": 0.25}
    assert one.tasks["a"].model_dump(exclude={"weight"}) == base.tasks["a"].model_dump(exclude={"weight"})


@pytest.mark.parametrize(
    ("headline", "value", "expected"),
    [("accuracy", 0.8, 0.2), ("spearman", -0.5, 1.5), ("spearman", float("nan"), 1.0), ("spearman", None, 1.0),
     ("mean_squared_error", 2.0, 0.5), ("mean_absolute_error", 1.0, 0.5)],
)  # fmt: skip
def test_cost_is_low_where_the_task_is_done_well(headline: str, value: float | None, expected: float) -> None:
    score = {"loss": 1.0, "constant_loss": 4.0, "headline": headline, "metrics": {headline: value}}
    assert cost(score, "headline") == pytest.approx(expected)
    assert cost(score, "loss") == 0.25
