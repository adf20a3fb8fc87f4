"""The teacher's part of a loss: the formulas by hand, their gradients, and what temperature and weight do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.models.distillation import Soft, soft_loss_sum
from lmrecipes.models.heads import Head, HeadSpec
from lmrecipes.recipe import TaskLoss


def spec(kind: str, outputs: int, loss: TaskLoss = "auto") -> HeadSpec:
    return HeadSpec(kind, tuple("abcdef"[:outputs]), (0.0,) * outputs, 1.0, mean=10.0, std=3.0, loss=loss)  # type: ignore[arg-type]


SPECS = {
    "regression": spec("regression", 1),
    "classification": spec("classification", 4),
    "multi_label": spec("multi_label", 4),
    "each_class": spec("classification", 4, "binary_cross_entropy"),
    "squares": spec("classification", 4, "mean_squared_error"),
}


def made(name: str, temperature: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, Soft]:
    """Outputs of a student and values of a teacher, of 5 rows."""
    random = torch.Generator().manual_seed(seed)
    width = SPECS[name].outputs
    outputs = torch.randn(5, width, generator=random, dtype=torch.float64, requires_grad=True)
    values = torch.randn(5, width, generator=random, dtype=torch.float64) * 2
    return outputs, Soft(10 + 3 * values[:, 0] if name == "regression" else values, 1.0, temperature)


def by_hand(name: str, outputs: torch.Tensor, soft: Soft) -> float:
    """Element by element, with the formulas of the definitions."""
    total, t = 0.0, soft.temperature
    for own, values in zip(outputs.tolist(), soft.values.tolist(), strict=True):
        if name == "regression":
            total += (10 + 3 * own[0] - values) ** 2
        elif name == "squares":
            total += sum((q - p) ** 2 for q, p in zip(own, values, strict=True))
        elif name == "classification":
            p, q = (np.exp(np.array(z) / t) / np.exp(np.array(z) / t).sum() for z in (values, own))
            total += t**2 * float((p * np.log(p / q)).sum())
        else:
            for a, b in zip(values, own, strict=True):
                p, q = (1 / (1 + math.exp(-z / t)) for z in (a, b))
                total += t**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    return total


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_sum_is_the_formula(name: str, temperature: float) -> None:
    outputs, soft = made(name, temperature)
    assert soft_loss_sum(SPECS[name], outputs, soft).item() == pytest.approx(by_hand(name, outputs, soft), rel=1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_its_gradient_is_what_differences_say(name: str) -> None:
    outputs, soft = made(name)
    soft_loss_sum(SPECS[name], outputs, soft).backward()
    assert outputs.grad is not None
    for row, column in ((0, 0), (4, SPECS[name].outputs - 1)):
        moved = [outputs.detach().clone() for _ in range(2)]
        moved[0][row, column] += 1e-5
        moved[1][row, column] -= 1e-5
        wanted = (by_hand(name, moved[0], soft) - by_hand(name, moved[1], soft)) / 2e-5
        assert outputs.grad[row, column].item() == pytest.approx(wanted, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", SPECS)
def test_who_says_what_the_teacher_says_has_nothing_to_learn(name: str) -> None:
    outputs, soft = made(name)
    values = soft.values[:, None] if name == "regression" else soft.values
    agreeing = ((values - 10) / 3 if name == "regression" else values).clone().requires_grad_()
    loss = soft_loss_sum(SPECS[name], agreeing, soft)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert agreeing.grad is not None and agreeing.grad.abs().max().item() < 1e-12
    assert soft_loss_sum(SPECS[name], outputs, soft).item() > 0.1


@given(st.floats(0, 1), st.integers(0, 50))
def test_the_loss_is_a_mixture_by_weight(weight: float, seed: int) -> None:
    """Of weight 0 to the last bit that of the labels, gradients included."""
    for name, known in SPECS.items():
        head = Head(3, known).double()
        outputs, soft = made(name, seed=seed)
        targets = torch.zeros(5, 4) if name == "multi_label" else torch.arange(5) % 4
        soft.weight = weight
        of_labels, of_teacher = head.loss_sum(outputs, targets), soft_loss_sum(known, outputs, soft)
        mixed = head.loss_sum(outputs, targets, soft)
        assert mixed.item() == pytest.approx(((1 - weight) * of_labels + weight * of_teacher).item(), rel=1e-12)
        if weight == 0:
            assert mixed.item() == of_labels.item()
            plain, both = (torch.autograd.grad(loss, outputs)[0] for loss in (of_labels, mixed))
            assert torch.equal(plain, both)


def test_gradients_keep_their_size_at_any_temperature() -> None:
    """Of small logits they tend to the difference of the logits, whatever the temperature (arXiv 1503.02531, eq. 4)."""
    outputs, soft = made("classification")
    small = (outputs.detach() / 100).requires_grad_()
    norms = []
    for temperature in (1.0, 8.0):
        loss = soft_loss_sum(SPECS["classification"], small, Soft(soft.values / 100, 1.0, temperature))
        norms.append(torch.autograd.grad(loss, small)[0].norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
