"""The exponential moving average of the weights over training (Tarvainen and Valpola 2017, arXiv 1703.01780, eq. 1).
Its decay grows over the first updates as in TensorFlow's `ExponentialMovingAverage` with `num_updates`.

Kept in fp32 of what the optimizer updates on this rank: the weights themselves, or under ZeRO 1-3 the rank's part of
the masters. It is read from the optimizer's tensors after every applied update, and put in their place for the time of
an evaluation or an export; nothing of training can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lmrecipes.training import holdings, zero

if TYPE_CHECKING:
    from lmrecipes.training.engine import Engine


class WeightAverage:
    """Of one rank. values: fp32, beside each of `holdings.updated`. updates: how many it has seen."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self.engine, self.decay, self.updates = engine, decay, 0
        self.values = [tensor.detach().float().clone() for tensor in holdings.updated(engine)]

    @classmethod
    def of(cls, engine: Engine) -> WeightAverage | None:
        """The average that the recipe asks for, of an engine that is prepared."""
        decay = engine.recipe.averaging.ema_decay
        return cls(engine, decay) if decay else None

    def update(self) -> None:
        """Follow the weights after an applied update; skipped ones do not count."""
        self.updates += 1
        kept = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for average, tensor in zip(self.values, holdings.updated(self.engine), strict=True):
                average.lerp_(tensor.detach().float(), 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within: the model computes with the average. Holds one more copy of the weights meanwhile."""
        weights = [tensor.detach().clone() for tensor in holdings.updated(self.engine)]
        self._put(self.values)
        try:
            yield
        finally:
            self._put(weights)

    def save(self, folder: Path) -> None:
        """Write what `load` reads; every rank under ZeRO 1-3, else rank 0 for all, whose averages are alike."""
        if self.engine.zero_stage or self.engine.is_main:
            torch.save({"updates": self.updates, "values": self.values}, self._file(folder))

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote."""
        saved = torch.load(self._file(folder), map_location="cpu", weights_only=True)
        self.updates = saved["updates"]
        for average, value in zip(self.values, saved["values"], strict=True):
            average.copy_(value)

    def _file(self, folder: Path) -> Path:
        return folder / (f"average-{self.engine.rank:05d}.pt" if self.engine.zero_stage else "average.pt")

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(holdings.updated(self.engine), values, strict=True):
                tensor.copy_(value)
        if self.engine.zero_stage:
            zero.follow_masters(self.engine.model, self.engine.zero_stage)
