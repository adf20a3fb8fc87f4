"""Statistics of one tensor over many calls, in accumulators whose size does not depend on how much is seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lmrecipes.precision.audit.numbers import InFormat, Losses, TensorNumbers, decibels
from lmrecipes.precision.formats import FORMATS, NumberFormat
from lmrecipes.precision.rounding import power_of_two, round_to, row_scale

Scaling = Literal["row", "tensor", "none"]

BINS = 256
"""Exponents of an fp32 number: bin b holds [2**(b - 127), 2**(b - 126)); 0 holds zeros and subnormal numbers."""
BIAS = 127
SMALLEST_SHARE = 0.001
"""Of the values that are not zero, left out at the lower end of the dynamic range."""


@dataclass(frozen=True)
class RowErrors:
    """Of each sampled row, fp64 [rows]: the squared norm of the values; and by format that of their errors, and the
    product of values and errors."""

    squared: Tensor
    errors: dict[str, Tensor]
    together: dict[str, Tensor]


class Tally:
    """Accumulates what `TensorNumbers` says. scaling: of each candidate format, as training scales this tensor."""

    def __init__(self, scaling: Mapping[str, Scaling]) -> None:
        self.scaling = dict(scaling)
        self.values = self.sampled = 0
        self.largest: Tensor | None = None
        self.plain = torch.zeros(BINS, dtype=torch.float64)
        self.scaled = {name: torch.zeros(BINS, dtype=torch.float64) for name in scaling}
        self.over = {name: [0, 0] for name in scaling}
        self.signal: Tensor | None = None
        self.fourth = 0.0
        self.noise: dict[str, Tensor] = {}

    def see(self, whole: Tensor) -> None:
        """All values of a call: only how many, and the largest."""
        if whole.numel():
            self.values += whole.numel()
            low, high = torch.aminmax(whole.detach())
            largest = torch.maximum(-low, high).float()
            self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def add(self, rows: Tensor) -> RowErrors:
        """Sampled rows [rows, channels], scaled row by row where the format wants it."""
        x = rows.detach().float()
        exact = x.double()
        squares = exact.square()
        if self.signal is None:
            channels = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
            self.signal, self.noise = channels, {name: channels.clone() for name in self.scaling}
        self.sampled += x.numel()
        self.signal += squares.sum(0)
        self.fourth += float(squares.square().sum())
        plain, top = _histogram(x), float(x.abs().max()) if x.numel() else 0.0
        self.plain += plain
        errors, together = {}, {}
        for name, scaling in self.scaling.items():
            number = FORMATS[name]
            scale = _scale(x, number, scaling)
            y = x if scale is None else x * scale
            self.scaled[name] += plain if scale is None else _histogram(y)
            if top > number.largest:
                self.over[name][1] += int((x.abs() > number.largest).sum())
            if scale is None:
                self.over[name][0] = self.over[name][1]
            rounded = round_to(y, number)
            wrong = (rounded if scale is None else rounded / scale).double() - exact
            squared = wrong.square()
            self.noise[name] += squared.sum(0)
            errors[name], together[name] = squared.sum(1), (wrong * exact).sum(1)
        return RowErrors(squares.sum(1), errors, together)

    def numbers(self) -> TensorNumbers:
        """What was found. Raises ValueError where nothing was sampled."""
        if self.signal is None or self.largest is None:
            raise ValueError("nothing was seen")
        count = float(self.plain.sum())
        alive = float(count - self._zeros())
        per_channel = self.signal.sort().values
        total = float(per_channel.sum())
        middle = float(per_channel[len(per_channel) // 2])
        return TensorNumbers(
            values=self.values,
            sampled=self.sampled,
            largest=float(self.largest),
            rms=math.sqrt(total / self.sampled) if self.sampled else 0.0,
            binades=self._binades(float(self.largest)),
            kurtosis=self.fourth * self.sampled / total**2 if total else 0.0,
            outlier=math.sqrt(float(per_channel[-1]) / middle) if middle else 1.0,
            formats={name: self._in_format(FORMATS[name], alive) for name in self.scaling},
        )

    def _in_format(self, number: NumberFormat, alive: float) -> InFormat:
        assert self.signal is not None
        noise, heard = self.noise[number.name], self.signal > 0
        ratios = [decibels(*pair) for pair in zip(self.signal[heard].tolist(), noise[heard].tolist(), strict=True)]
        ratios.sort()
        scaled, plain = self.over[number.name]
        return InFormat(
            sqnr=ratios[len(ratios) // 2] if ratios else decibels(1, 0),
            losses=_losses(self.scaled[number.name], number, scaled, alive),
            plain=_losses(self.plain, number, plain, alive),
        )

    def _zeros(self) -> float:
        """Zeros, and numbers that fp32 holds without all bits."""
        return float(self.plain[0])

    def _binades(self, largest: float) -> float:
        held = self.plain[1:].cumsum(0)
        if not largest or not math.isfinite(largest) or not float(held[-1]):
            return 0.0
        lowest = int((held > SMALLEST_SHARE * held[-1]).nonzero()[0]) + 1
        return max(0.0, math.log2(largest) - (lowest - BIAS))


def _scale(x: Tensor, number: NumberFormat, scaling: Scaling) -> Tensor | None:
    if scaling == "none" or not x.numel():
        return None
    return row_scale(x, number) if scaling == "row" else power_of_two(x.abs().max(), number.largest)


def _histogram(x: Tensor) -> Tensor:
    """How many values of fp32 x have each exponent, fp64 [BINS] on the CPU."""
    exponents = (x.contiguous().view(torch.int32) >> 23) & 0xFF
    return torch.bincount(exponents.flatten(), minlength=BINS).double().cpu()


def _losses(bins: Tensor, number: NumberFormat, over: int, alive: float) -> Losses:
    """From a histogram; both limits of small numbers are powers of two."""
    if not alive:
        return Losses(0.0, 0.0, 0.0)
    least = round(math.log2(number.smallest)) + BIAS
    small = bins[1:]
    return Losses(
        overflow=over / alive,
        underflow=float(small[: max(0, least - 2)].sum()) / alive,
        no_bits=float(small[: max(0, least)].sum()) / alive,
    )
