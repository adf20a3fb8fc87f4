"""The first numbers that are not finite are named: layer, tensor, micro-batch, rank, how many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmrecipes.precision.causes import Cause, find


class Split(nn.Module):
    """Gives what is not a tensor of numbers too."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"hidden": (x, None), "places": torch.arange(3)}


class InfinitelySteep(torch.autograd.Function):
    """Gives what it gets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.sign() * float("inf")


class Steep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = InfinitelySteep.apply(x)
        return out


class Trunk(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), Split())


class Model(nn.Module):
    """As a MultiTaskModel: a trunk, a head, losses by task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = Trunk()
        self.heads = nn.ModuleDict({"a": nn.Linear(6, 1), "b": nn.Linear(6, 1)})
        self.tasks = ["a", "b"]
        self.of_b = 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk.model(x)["hidden"][0]
        losses = [self.heads["a"](hidden).square().sum(), self.heads["b"](hidden).square().sum() * self.of_b]
        return losses[0] + losses[1], torch.stack(losses)


class Engine:
    """One rank, and what another one said."""

    rank = 0

    def __init__(self, model: Model, other: Cause | None = None) -> None:
        self.module, self.other = model, other
        self.steps: list[bool] = []

    def micro_step(self, batch: Tensor, last: bool) -> None:
        self.steps.append(last)
        self.module(batch)[0].backward()

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]

    def clear_gradients(self) -> None:
        self.module.zero_grad(set_to_none=True)


FINE = torch.ones(3, 4)


def cause(model: Model, *batches: Tensor, other: Cause | None = None) -> Cause | None:
    engine: Any = Engine(model, other)
    prepared: list[int] = []
    found = find(engine, list(batches) or [FINE, FINE], prepared.append)  # type: ignore[arg-type]
    assert prepared == list(range(len(engine.steps)))
    assert engine.steps == [False] * (len(engine.steps) - 1) + [True]
    assert all(p.grad is None for p in model.parameters()), "nothing of it is left for the next step"
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    assert not any(getattr(module, kind) for module in model.modules() for kind in hooks)
    assert not any(p._backward_hooks for p in model.parameters())
    return found


def fill(model: Model, name: str, value: float) -> Model:
    with torch.no_grad():
        model.get_parameter(name).fill_(value)
    return model


def test_finite_numbers_have_no_cause() -> None:
    assert cause(Model()) is None


def test_activations_and_the_place_where_they_first_overflow() -> None:
    """The third layer overflows; what reads it is not finite either."""
    batch = FINE.clone()
    batch[1] = 1e30
    model = fill(fill(fill(Model(), "trunk.model.0.weight", 1), "trunk.model.0.bias", 0), "trunk.model.2.weight", 1e9)
    found = cause(model, FINE, batch)
    assert found is not None
    assert str(found) == "the activations of 2 are not finite (6 of 18 values, rank 0, micro-batch 1)"


def test_weights_are_named_before_what_they_give() -> None:
    model = Model()
    with torch.no_grad():
        model.heads["b"].weight[0, :2] = float("nan")
    assert str(cause(model)) == "the weights of heads.b are not finite (2 of 6 values, rank 0, micro-batch 0)"


def test_a_loss() -> None:
    model = Model()
    model.of_b = float("inf")
    assert str(cause(model)) == "the loss of task b is not finite (1 of 1 values, rank 0, micro-batch 0)"


def test_gradients_in_the_order_of_backward() -> None:
    """Of the layer before the steep one, which backward meets after those behind it."""
    model = Model()
    model.trunk.model[1] = Steep()
    assert str(cause(model)) == "the gradients of 0 are not finite (24 of 24 values, rank 0, micro-batch 0)"


def test_gradients_of_weights_alone() -> None:
    """Activations of 1e20 and a gradient of 1e20: each is finite, their product is not."""
    model = fill(fill(fill(Model(), "trunk.model.0.weight", 0), "trunk.model.0.bias", 1e20), "trunk.model.2.weight", 0)
    fill(fill(fill(model, "heads.a.weight", 1e10), "heads.a.bias", 1e10), "heads.b.weight", 0)
    assert str(cause(model)) == "the weight gradients of 2 are not finite (48 of 48 values, rank 0, micro-batch 0)"


def test_a_norm_that_overflows_though_every_gradient_is_finite() -> None:
    model = fill(fill(Model(), "heads.a.bias", 1e18), "heads.b.weight", 0)
    fill(model, "trunk.model.2.weight", 0)
    fill(model, "trunk.model.2.bias", 100)
    found = cause(model)
    assert found is not None
    assert found.bad == 0
    assert str(found) == "the norm of the gradients overflows: the largest is 6e+20, of heads.a (rank 0, micro-batch 0)"


@pytest.mark.parametrize(
    "moment, first",
    [({"micro_batch": 1, "place": 1}, "mine"), ({"place": 1}, "other"), ({"place": 99}, "mine"), ({}, "mine")],
)
def test_the_first_over_all_ranks(moment: dict[str, int], first: str) -> None:
    """In an earlier micro-batch, else at an earlier place, else on the lower rank."""
    mine = cause(fill(Model(), "heads.b.weight", float("inf")))
    assert mine is not None
    other = replace(mine, rank=1, **moment)
    found = cause(fill(Model(), "heads.b.weight", float("inf")), other=other)
    assert found == {"mine": mine, "other": other}[first]
    assert cause(Model(), other=other) == other, "this rank's numbers are finite"
