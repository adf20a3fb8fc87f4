"""Bytes of activations: what autograd keeps, once, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmrecipes.precision.held import activation_bytes

ROWS, WIDTH = 8, 16
ONE = ROWS * WIDTH * 4
"""Bytes of an activation [rows, width] in fp32."""


def test_layers_keep_their_inputs_and_no_weights() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
    x = torch.randn(ROWS, WIDTH)
    # The first layer keeps x, tanh its output, which is the second layer's input too.
    assert activation_bytes(lambda: model(x).sum(), model) == 2 * ONE


def test_views_of_one_storage_count_once_and_as_a_whole() -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    model = nn.Identity()
    assert activation_bytes(lambda: (x[:4] * x[4:]).sum() + (x * x).sum(), model) == ONE


def test_what_the_graph_has_let_go_of_is_not_held() -> None:
    x = torch.randn(ROWS, WIDTH, requires_grad=True)

    def run(keep: bool) -> tuple[Tensor, ...]:
        other = x.exp().sum()
        return (x.tanh().sum(), other) if keep else (x.tanh().sum(),)

    assert activation_bytes(lambda: run(keep=False), nn.Identity()) == ONE
    assert activation_bytes(lambda: run(keep=True), nn.Identity()) == 2 * ONE


def test_without_gradients_nothing_is_held() -> None:
    model = nn.Linear(WIDTH, WIDTH)
    with torch.no_grad():
        assert activation_bytes(lambda: model(torch.randn(ROWS, WIDTH)).tanh(), model) == 0


def test_autocast_keeps_half_of_the_activations_and_rounded_weights() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh())
    x = torch.randn(ROWS, WIDTH)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = model(x).sum()
        return out

    # x in bf16 and the output of tanh; the rounded weight is needed for the gradient of x, which nobody wants.
    assert activation_bytes(run, model) == ONE // 2 + ONE // 2
    x.requires_grad_()
    assert activation_bytes(run, model) == ONE // 2 + ONE // 2 + WIDTH * WIDTH * 2


def test_a_checkpointed_part_keeps_its_inputs() -> None:
    from torch.utils.checkpoint import checkpoint

    part = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(5)))
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    assert activation_bytes(lambda: part(x).sum(), part) == 6 * ONE
    assert activation_bytes(lambda: checkpoint(part, x, use_reentrant=False).sum(), part) == ONE


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, by_context: bool) -> Tensor:
        rounded = x.to(torch.float8_e4m3fn)
        if by_context:
            ctx.rounded = rounded
        else:
            ctx.save_for_backward(rounded, weight)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return 2 * gradient, None, None


@pytest.mark.parametrize(("by_context", "held"), [(False, ONE // 4), (True, 0)])
def test_own_functions_are_seen_by_what_they_save_and_not_by_what_they_put_on_their_context(
    by_context: bool, held: int
) -> None:
    model = nn.Linear(WIDTH, WIDTH)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    assert activation_bytes(lambda: _Doubled.apply(x, model.weight, by_context).sum(), model) == held


def test_the_backward_pass_still_works_within() -> None:
    model = nn.Linear(WIDTH, WIDTH)

    def run() -> None:
        model(torch.ones(ROWS, WIDTH)).square().sum().backward()

    assert activation_bytes(run, model) == 0, "backward frees what was kept"
    assert model.weight.grad is not None and model.weight.grad.abs().sum() > 0
