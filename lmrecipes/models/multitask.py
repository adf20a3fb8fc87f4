"""One trunk, one head for each task, one forward for any mix of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.data.batches import MicroBatch, Texts
from lmrecipes.models.heads import Head, HeadSpec
from lmrecipes.models.trunk import Trunk


class MultiTaskModel(nn.Module):
    """Trunk and heads. Every call runs the trunk and every head, in one fixed order: ranks that hold
    different tasks in the same micro-batch stay in step under DDP and ZeRO 1-3 without searching unused parameters."""

    def __init__(self, trunk: Trunk, specs: dict[str, HeadSpec]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict({name: Head(trunk.hidden_size, spec) for name, spec in specs.items()})

    def forward(self, batch: MicroBatch | Texts, pooled: bool = False) -> Any:
        """A micro-batch -> `losses`; bare texts -> `predictions`, or where pooled the trunk's vectors [texts, hidden].
        One entry: DDP's and ZeRO's hooks hang on it."""
        if isinstance(batch, MicroBatch):
            return self.losses(batch)
        return self.trunk(batch) if pooled else self.predictions(batch)

    def losses(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The micro-batch's part of the step's loss (fp32 [], to be summed over micro-batches and ranks, not averaged),
        and each task's loss sum in its own units (fp32 [tasks], detached)."""
        pooled = self.trunk(batch.texts)
        total, sums = pooled.new_zeros((), dtype=torch.float32), []
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            task = batch.tasks[name]
            loss = head.loss_sum(head(pooled[task.rows]), task.targets)
            total = total + loss * task.scale
            sums.append(loss.detach() if task.examples else torch.zeros_like(loss))
        return total, torch.stack(sums)

    def predictions(self, texts: Texts) -> dict[str, Tensor]:
        """Predictions of every head on every text: fp32 [texts] or [texts, outputs]."""
        pooled = self.trunk(texts)
        out = {}
        for name, head in self.heads.items():
            assert isinstance(head, Head)
            out[name] = head.predictions(head(pooled))
        return out
