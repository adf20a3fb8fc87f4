"""Uncertainty, DWA and FAMO: the papers' formulas by hand or against their own code, and any losses."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.adaptive.loss_weighting import DECAY, WEIGHTERS, Dwa, Famo, Uncertainty, rounded
from lmrecipes.adaptive.rounds import Mean, Round
from lmrecipes.recipe import LossWeighting


def means(**losses: float) -> dict[str, Mean]:
    return {task: Mean(loss, 10) for task, loss in losses.items()}


def asked(**changes: Any) -> LossWeighting:
    return LossWeighting.model_validate(changes)


def test_uncertainty_is_gradient_descent_on_the_papers_objectives() -> None:
    """Regression exp(-s) L / 2 + s / 2 from s = 0, classification exp(-s) L + s / 2 from s = log 2; factors are twice
    the objectives' coefficients of L."""
    losses, lr = [0.9, 0.7, 0.4, 1.3], 0.1
    regression, classification = torch.zeros(()), torch.tensor(math.log(2))
    for loss in losses:
        for s, coefficient in ((regression, 0.5), (classification, 1.0)):
            for _ in range(5):
                s.requires_grad_(True)
                (gradient,) = torch.autograd.grad(coefficient * torch.exp(-s) * loss + s / 2, s)
                with torch.no_grad():
                    s -= lr * gradient
    ours = Uncertainty()
    for loss in losses:
        found = ours.update(means(a=loss), asked(every=5, lr=lr))
    assert found["a"] == pytest.approx(2 * 0.5 * math.exp(-regression.item()), rel=1e-5)
    assert found["a"] == pytest.approx(2 * 1.0 * math.exp(-classification.item()), rel=1e-5)


@settings(deadline=None)
@given(st.floats(0.01, 20))
def test_uncertainty_comes_to_rest_where_every_term_is_one(loss: float) -> None:
    ours = Uncertainty()
    for _ in range(300):
        found = ours.update(means(a=loss), asked(lr=0.2))
    assert ours.r["a"] == pytest.approx(math.log(loss), abs=1e-6)
    assert found["a"] * loss == pytest.approx(1)


def test_uncertainty_takes_no_leap() -> None:
    ours = Uncertainty()
    ours.update(means(a=1e9), asked(every=1, lr=0.1))
    assert ours.r["a"] == pytest.approx(0.05)


def test_dwa_by_hand() -> None:
    dwa = Dwa()
    assert dwa.update(means(a=1.0, b=1.0), asked()) == {"a": 1.0, "b": 1.0}
    found = dwa.update(means(a=0.5, b=0.9), asked(temperature=2.0))
    total = math.exp(0.25) + math.exp(0.45)
    assert found == pytest.approx({"a": 2 * math.exp(0.25) / total, "b": 2 * math.exp(0.45) / total})
    assert dwa.update(means(b=0.81), asked()) == pytest.approx(found), "a keeps its pace, that of b is the same"
    flat = dwa.update(means(a=0.1, b=0.81), asked(temperature=1e6))
    assert flat == pytest.approx({"a": 1.0, "b": 1.0}, abs=1e-5)


class OfficialFamo:
    """What github.com/Cranial-XIX/FAMO computes, in torch."""

    def __init__(self, tasks: int, lr: float) -> None:
        self.w = torch.zeros(tasks, dtype=torch.float64, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.w], lr=lr, weight_decay=DECAY)

    def update(self, before: torch.Tensor, after: torch.Tensor) -> None:
        delta = before.log() - after.log()
        self.w.grad = torch.autograd.grad(torch.softmax(self.w, -1), self.w, grad_outputs=delta)[0]
        self.optimizer.step()

    def coefficients(self, losses: torch.Tensor) -> torch.Tensor:
        """d/dL of sum(log L z / c)."""
        leaf = losses.clone().requires_grad_(True)
        z = torch.softmax(self.w.detach(), -1)
        c = (z / leaf).sum().detach()
        return torch.autograd.grad((leaf.log() * z / c).sum(), leaf)[0]


def test_famo_is_its_official_code() -> None:
    names = ("a", "b", "c")
    rounds = [[1.0, 0.9, 1.1], [0.8, 0.9, 1.0], [0.6, 0.88, 1.0], [0.5, 0.85, 1.2], [0.45, 0.7, 0.9], [0.4, 0.7, 0.5]]
    ours, theirs = Famo(), OfficialFamo(3, lr=0.025)
    former = None
    for losses in rounds:
        found = ours.update(means(**dict(zip(names, losses, strict=True))), asked(lr=0.025))
        now = torch.tensor(losses, dtype=torch.float64)
        if former is not None:
            theirs.update(former, now)
        former = now
        wanted = dict(zip(names, (3 * theirs.coefficients(now)).tolist(), strict=True))
        assert found == pytest.approx(wanted, rel=1e-6)
        assert sum(found.values()) == pytest.approx(3)


def test_famo_turns_to_what_falls_slowest() -> None:
    famo = Famo()
    for number in range(20):
        famo.update(means(fast=0.9**number, slow=0.99**number), asked())
    assert famo.logits["slow"] > 0.2 > -0.2 > famo.logits["fast"]


def test_a_task_that_comes_late_joins() -> None:
    famo = Famo()
    famo.update(means(a=1.0, b=1.0), asked())
    famo.update(means(a=0.5), asked())
    found = famo.update(means(a=0.5, b=0.9, c=1.0), asked())
    assert set(found) == {"a", "b", "c"}
    assert famo.logits["c"] == 0


LOSSES = st.dictionaries(st.sampled_from(("a", "b", "c")), st.floats(0, 1e6), max_size=3)


@settings(deadline=None)
@given(st.sampled_from(sorted(WEIGHTERS)), st.lists(LOSSES, min_size=1, max_size=30), st.floats(1e-3, 1))
def test_any_losses_give_factors(method: str, rounds: list[dict[str, float]], lr: float) -> None:
    """Finite and not negative, of all tasks seen; a saved and loaded state goes on alike."""
    weighter, seen = WEIGHTERS[method](), set()
    for losses in rounds:
        kept = Round()
        kept.add(losses, dict.fromkeys(losses, 3))
        closed, how = kept.close(), asked(method=method, lr=lr, every=4)
        again = type(weighter)(**json.loads(json.dumps(asdict(weighter))))
        found = weighter.update(closed, how)
        assert again.update(closed, how) == found
        seen |= set(losses)
        assert set(found) == seen
        assert all(0 <= factor < math.inf for factor in found.values())
        if method != "uncertainty" and seen:
            assert sum(found.values()) == pytest.approx(len(seen)), "1 on average"


@pytest.mark.parametrize("method", sorted(WEIGHTERS))
def test_the_first_factors_are_near_one(method: str) -> None:
    found = WEIGHTERS[method]().update(means(a=1.0, b=1.0), asked(method=method))
    assert found == pytest.approx({"a": 1.0, "b": 1.0})


def test_factors_have_three_digits() -> None:
    assert [rounded(x) for x in (1.23556, 0.000123456, 12345.6)] == [1.24, 0.000123, 12300.0]
