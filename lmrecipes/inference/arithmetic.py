"""The arithmetic of a model: where it computes, in which dtype, and how it gets there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Arithmetic:
    """autocast: the weights stay fp32 and are cast to `dtype` at each product; else they have that dtype themselves."""

    device: torch.device
    dtype: torch.dtype
    autocast: bool

    @classmethod
    def here(cls, compute: str, autocast: bool) -> Arithmetic:
        """A run's, on this machine's GPU, else its CPU; there fp16 products, slower than fp32, are computed in fp32."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = HALF.get(compute, torch.float32)
        if dtype is torch.float16 and device.type == "cpu":
            dtype = torch.float32
        return cls(device, dtype, autocast and dtype is not torch.float32)

    @property
    def in_fp32(self) -> Arithmetic:
        """The same without rounding."""
        return Arithmetic(self.device, torch.float32, False)

    def place(self, model: Module) -> Module:
        """Move a model with fp32 weights, in place. Its buffers stay fp32, as in training: rotary frequencies that are
        rounded to 16 bits put tokens in other places."""
        model.to(self.device)
        if not self.autocast:
            for parameter in model.parameters():
                parameter.data = parameter.data.to(self.dtype)
        return model

    def products(self) -> AbstractContextManager[object]:
        """Within: a placed model computes as it should."""
        return torch.autocast(self.device.type, self.dtype) if self.autocast else nullcontext()

    def outputs(self, model: nn.Module, ids: list[int]) -> Tensor:
        """What a model of `transformers` with fp32 weights gives for a text: fp32 on the CPU, [time, vocabulary] or
        [time, hidden]. The model is placed."""
        self.place(model)
        with torch.no_grad(), self.products():
            out: Tensor = model(input_ids=torch.tensor([ids], device=self.device))[0][0]
        return out.float().cpu()
