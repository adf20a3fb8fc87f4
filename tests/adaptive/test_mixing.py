"""ODM and ADO: the papers' formulas on examples worked by hand, and what they must do with any losses."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.adaptive.learning_curve import fit_power_law
from lmrecipes.adaptive.mixing import MIXERS, Ado, Odm, Shares, exploration, whole_weights, with_floors
from lmrecipes.adaptive.rounds import LEAST, Mean, Round
from lmrecipes.recipe import Adaptive

TASKS = ("a", "b", "c")
START = {"a": 0.6, "b": 0.37, "c": 0.03}


def means(losses: dict[str, float]) -> dict[str, Mean]:
    return {task: Mean(loss, 10) for task, loss in losses.items()}


def asked(**changes: Any) -> Adaptive:
    return Adaptive.model_validate({"method": "odm", "every": 10, **changes})


def test_exploration_falls_from_one_over_k() -> None:
    assert exploration(3, 0) == exploration(3, 1) == 1 / 3
    assert exploration(3, 100) == pytest.approx(math.sqrt(math.log(3) / 300))
    assert exploration(1, 7) == 0


def test_odm_by_hand() -> None:
    """Algorithm 1 with two tasks, 10 draws a round, smoothing 0.75, at rounds 3 and 4."""
    odm, start = Odm(), {"a": 0.5, "b": 0.5}
    odm.update(3, means({"a": 1.0, "b": 0.5}), start, start, asked(smoothing=0.75))
    assert odm.rewards == {"a": 10.0, "b": 5.0}, "the first reward counts in full"
    found = odm.update(4, means({"a": 0.6}), start, start, asked(smoothing=0.75))
    assert odm.rewards == {"a": 9.0, "b": 5.0}, "a task that was not drawn keeps its estimate"
    before, now = math.sqrt(math.log(2) / 6), math.sqrt(math.log(2) / 8)
    gibbs = math.exp(before * 9) / (math.exp(before * 9) + math.exp(before * 5))
    assert found == pytest.approx({"a": (1 - 2 * now) * gibbs + now, "b": (1 - 2 * now) * (1 - gibbs) + now})


def test_odm_takes_an_unseen_task_for_an_average_one() -> None:
    start = {"a": 0.4, "b": 0.4, "c": 0.2}
    found = Odm().update(50, means({"a": 0.9, "b": 0.3}), start, start, asked())
    assert found is not None
    assert found["a"] > found["c"] > found["b"]


def train(shares_of: Any, rounds: int = 60) -> dict[str, float]:
    """Losses that fall by a power law of each task's own examples: `c` is by far the hardest."""
    rates, seen = {"a": 0.6, "b": 0.5, "c": 0.2}, dict.fromkeys(TASKS, 1.0)
    shares: Shares = dict.fromkeys(TASKS, 1 / 3)
    for number in range(1, rounds + 1):
        losses = {task: seen[task] ** -rates[task] for task in TASKS}
        shares = shares_of(number, losses, shares)
        for task in TASKS:
            seen[task] += 20 * shares[task]
    return {task: seen[task] ** -rates[task] for task in TASKS}


def test_odm_converges_to_the_arm_that_is_not_yet_learned() -> None:
    odm, start, last = Odm(), dict.fromkeys(TASKS, 1 / 3), {}

    def bandit(number: int, losses: dict[str, float], shares: Shares) -> Shares:
        new = odm.update(number, means(losses), shares, start, asked(every=20))
        assert new is not None
        last.update(new)
        return new

    static, adaptive = train(lambda number, losses, shares: shares), train(bandit)
    assert max(last, key=last.__getitem__) == "c"
    assert last["c"] > 0.4
    assert max(adaptive.values()) < max(static.values()), "the worst task is better off than with equal shares"


def test_ado_by_hand() -> None:
    """Section 3: four rounds of planted curves, then credit, preference and the two means."""
    ado, start = Ado(), {"a": 0.7, "b": 0.3}
    laws = {"a": lambda n: 0.1 + 0.9 * n**-0.2, "b": lambda n: 0.2 + 0.8 * n**-0.7}
    in_force = {"a": 0.6, "b": 0.4}
    for number in (2, 3, 4):
        losses = means({task: law(number) for task, law in laws.items()})
        assert ado.update(number, losses, in_force, start, asked(method="ado")) is None, "too few points for a curve"
    found = ado.update(5, means({task: law(5) for task, law in laws.items()}), in_force, start, asked(method="ado"))
    credit = {task: 0.9**4 * start[task] + (1 - 0.9**4) * in_force[task] for task in start}
    speeds = {"a": 0.2 * 0.9 * 5**-1.2, "b": 0.7 * 0.8 * 5**-1.7}
    drive = {task: start[task] * math.sqrt(credit[task]) * speeds[task] for task in start}
    rho = {task: drive[task] / sum(drive.values()) for task in start}
    assert found == pytest.approx({task: 0.9 * start[task] + 0.1 * rho[task] for task in start}, abs=1e-6)
    assert ado.mean == pytest.approx({task: start[task] * 5 / 6 + rho[task] / 6 for task in start}, abs=1e-6)


def test_ado_keeps_the_prior_of_a_task_without_a_curve() -> None:
    ado, found = Ado(), None
    for number in range(1, 6):
        found = ado.update(number, means({"a": number**-0.1, "b": number**-0.6}), START, START, asked(method="ado"))
    assert found is not None
    assert found["c"] == pytest.approx(START["c"])
    assert found["b"] > START["b"], "the loss of b falls faster"
    assert sum(found.values()) == pytest.approx(1)


def test_ado_keeps_the_prior_where_no_loss_falls() -> None:
    ado = Ado()
    for number in range(1, 8):
        losses = means({"a": 0.5 + number / 100, "b": 0.3 + number / 100, "c": 0.1 + number / 100})
        found = ado.update(number, losses, START, START, asked(method="ado"))
    assert found == pytest.approx(START)


LOSSES = st.dictionaries(st.sampled_from(TASKS), st.floats(0, 1e6), max_size=3)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(MIXERS)), st.lists(st.tuples(LOSSES, st.booleans()), min_size=1, max_size=12),
    st.floats(0, 0.99), st.integers(1, 200),
)  # fmt: skip
def test_any_losses_give_shares(method: str, rounds: list[tuple[Any, bool]], smoothing: float, every: int) -> None:
    """They sum to 1 over what can be drawn, none is NaN or 0, and a saved and loaded state goes on alike."""
    mixer = MIXERS[method]()
    shares: Shares = START
    for number, (losses, exhausted) in enumerate(rounds, start=1):
        kept = Round()
        kept.add(losses, dict.fromkeys(losses, 3))
        drawn = {task: share for task, share in shares.items() if not (exhausted and task == "b")}
        again = type(mixer)(**json.loads(json.dumps(asdict(mixer))))
        args = (number, kept.close(), drawn, START, asked(method=method, smoothing=smoothing, every=every))
        found = mixer.update(*args)
        assert again.update(*args) == found
        assert asdict(again) == asdict(mixer)
        if found is not None:
            assert set(found) == set(drawn)
            assert sum(found.values()) == pytest.approx(1)
            assert all(share >= 0 for share in found.values())
            shares = START | with_floors(found, {task: 0.02 * START[task] for task in found})


@given(st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 0.99))
def test_floors_hold_and_the_rest_shrinks_in_proportion(rows: list[tuple[float, float]], size: float) -> None:
    raw = {str(i): share for i, (share, _) in enumerate(rows)}
    shares = {task: share / sum(raw.values()) for task, share in raw.items()}
    asked = sum(floor for _, floor in rows)
    floors = {str(i): size * floor / asked if asked else 0.0 for i, (_, floor) in enumerate(rows)}
    found = with_floors(shares, floors)
    assert list(found) == list(shares)
    assert sum(found.values()) == pytest.approx(1)
    assert all(found[task] >= floors[task] for task in found)
    factors = [found[task] / shares[task] for task in found if found[task] > floors[task]]
    assert max(factors, default=0) == pytest.approx(min(factors, default=0)), "the others keep their ratios"
    assert max(factors, default=0) <= 1 + 1e-9


def test_whole_weights() -> None:
    found = whole_weights({"a": 0.6, "b": 0.3999, "c": 0.0001}, TASKS)
    assert found == {"a": round(1e4 * 1.02**-26), "b": round(1e4 * 1.02**-46), "c": 1}
    assert whole_weights({"a": 1.0, "b": 0.0}, TASKS) == {"a": 10_000, "b": 1, "c": 0}
    assert whole_weights({"c": 1e-9}, TASKS) == {"a": 0, "b": 0, "c": 1}


@given(st.floats(0.01, 1))
def test_rounding_a_share_costs_one_percent(share: float) -> None:
    assert whole_weights({"a": share}, ("a",))["a"] / 10_000 == pytest.approx(share, rel=0.016)


@given(st.integers(1, 9999))
def test_the_last_bits_of_a_decimal_share_do_not_change_the_weights(parts: int) -> None:
    """Shares of few decimals, which those of a recipe are, lie on no boundary."""
    share = parts / 10_000
    for near in (share * (1 - 1e-7), share * (1 + 1e-7)):
        assert whole_weights({"a": near}, ("a",)) == whole_weights({"a": share}, ("a",))


def test_a_round_averages_over_elements() -> None:
    kept = Round()
    kept.add({"a": 1.0, "b": 0.0}, {"a": 30, "b": 1, "c": 0})
    kept.add({"a": 0.5}, {"a": 10, "b": 0, "c": 0})
    assert kept.close() == {"a": Mean(0.875, 40), "b": Mean(LEAST, 1)}
    assert kept.close() == {}


def test_a_curve_is_fitted_to_all_rounds() -> None:
    """What ADO hands to the fit is what it has seen."""
    ado = Ado()
    for number in range(3, 9):
        ado.update(number, means({"a": 0.2 + number**-0.5}), {"a": 1.0}, {"a": 1.0}, asked(method="ado"))
    law = fit_power_law(*zip(*ado.curves["a"], strict=True))
    assert (law.floor, law.exponent) == pytest.approx((0.2, 0.5), abs=1e-6)
