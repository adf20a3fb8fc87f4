"""A model whose layers hang on it in a list: the list is never called, its layers have regions of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmrecipes.precision.layers import install
from lmrecipes.recipe_precision import Precision


class Stack(nn.Module):
    """Layers in a list, as in the models of `transformers`; what each gave is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Of each layer, its output."""
        out: list[Tensor] = []
        for layer in self.layers:
            out.append(layer(out[-1] if out else x))
        return out


def test_a_rule_for_all_reaches_layers_in_a_list() -> None:
    torch.manual_seed(0)
    model, x = Stack(), torch.randn(3, 4)
    wanted = model(x)
    install(model, Precision(compute="bf16", layers={"*": "fp32"}), torch.device("cpu"))
    assert all(torch.equal(found, exact) for found, exact in zip(model(x), wanted, strict=True))


def test_a_rule_for_one_reaches_no_other() -> None:
    model = Stack()
    install(model, Precision(compute="bf16", layers={"layers.0": "fp32"}), torch.device("cpu"))
    assert [out.dtype for out in model(torch.randn(3, 4))] == [torch.float32, torch.bfloat16]
