"""What an optimizer step does to weights: how large the updates are, and how many a storage format would lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmrecipes.precision.audit.numbers import Update
from lmrecipes.precision.formats import BF16, FORMATS, NumberFormat

STORED = ("bf16", "fp16")
"""Formats that weights could be stored in without fp32 masters."""
PER_BINADE = 4
LOWEST, HIGHEST = -40, 24
"""Of log2(|update| / half a unit of the last place) in a histogram; what lies beyond counts at its ends."""


class Moved:
    """The updates of one module's own parameters, on sampled elements. keys: of each parameter's sample, int64."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], places: Mapping[str, Tensor]) -> None:
        self.parameters, self.places = dict(parameters), dict(places)
        self.before: dict[str, Tensor] = {}
        self.bins = {name: torch.zeros(PER_BINADE * (HIGHEST - LOWEST), dtype=torch.float64) for name in parameters}
        self.lost = {name: dict.fromkeys(STORED, 0.0) for name in parameters}
        self.moved = dict.fromkeys(parameters, 0)
        self.squares = {name: [0.0, 0.0] for name in parameters}

    def remember(self) -> None:
        """The weights as they are before the step."""
        self.before = {name: self._sample(name) for name in self.parameters}

    def see(self, factor: float) -> None:
        """The weights after the step. factor: the peak learning rate over that of the step; an update is linear in it.

        The update is measured on fp32 weights; what these themselves lost is zero here and counts as no update.
        """
        for name, before in self.before.items():
            update = (self._sample(name) - before).abs() * factor
            self.squares[name][0] += float(update.square().sum())
            self.squares[name][1] += float(before.square().sum())
            alive = update > 0
            update, weight = update[alive], before[alive]
            self.moved[name] += len(update)
            for kept in STORED:
                self.lost[name][kept] += int((2 * update < last_place(weight, FORMATS[kept])).sum())
            far = PER_BINADE * ((2 * update / last_place(weight, BF16)).log2() - LOWEST)
            last = len(self.bins[name]) - 1
            self.bins[name] += torch.bincount(far.long().clamp(0, last), minlength=last + 1).double().cpu()
        self.before = {}

    def update(self, factors: Sequence[float]) -> Update | None:
        """What was found; None where nothing moved. factors: each step's learning rate over the peak."""
        numbers = [name for name in self.parameters if self.moved[name]]
        if not numbers:
            return None
        weight = max(self.parameters, key=lambda name: (name == "weight", self.parameters[name].numel()))
        moved, kept = self.squares[weight]
        count = {name: self.parameters[name].numel() for name in numbers}
        total = sum(count.values())

        def mean(shares: Mapping[str, float]) -> float:
            return sum(count[name] * shares[name] for name in numbers) / total

        return Update(
            parameters=total,
            ratio=math.sqrt(moved / kept) if kept else math.inf,
            lost={f: mean({name: self.lost[name][f] / self.moved[name] for name in numbers}) for f in STORED},
            lost_on_average=mean({name: _lost_over(self.bins[name], factors) for name in numbers}),
        )

    def _sample(self, name: str) -> Tensor:
        return self.parameters[name].detach().flatten()[self.places[name]].double()


def last_place(weight: Tensor, number: NumberFormat) -> Tensor:
    """Distance from a weight to the next larger number of the format: 2**(floor(log2|w|) - mantissa), at least the
    smallest number."""
    exponent = torch.frexp(weight)[1] - 1
    least = round(math.log2(number.smallest_normal))
    exponent = torch.where(weight == 0, torch.full_like(exponent, least), exponent).clamp(min=least)
    return torch.ldexp(torch.ones_like(weight), exponent - number.mantissa)


def _lost_over(bins: Tensor, factors: Sequence[float]) -> float:
    """Mean over learning rates of the share of updates below half of the last place, each rate counted by its size."""
    below = bins.cumsum(0) / bins.sum()
    lost = 0.0
    for factor in factors:
        if factor > 0:  # lost where log2(ratio) + log2(factor) < 0
            end = math.ceil(PER_BINADE * (-math.log2(factor) - LOWEST))
            lost += factor * float(below[min(end, len(bins)) - 1]) if end > 0 else 0.0
    return lost / sum(factors)
