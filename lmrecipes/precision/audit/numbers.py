"""What an audit knows of each layer: numbers of its tensors in each candidate format. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["product", "other"]

FLOOR, CEILING = -20.0, 150.0
"""Signal-to-noise ratios are cut here, dB: at overflow there is only noise, and an exact number has none."""


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares, within `FLOOR` and `CEILING`."""
    if not math.isfinite(noise) or not signal:
        return FLOOR
    if not noise:
        return CEILING
    return min(CEILING, max(FLOOR, 10 * (math.log10(signal) - math.log10(noise))))


@dataclass(frozen=True)
class Losses:
    """Shares of the values that are not zero. overflow: beyond the largest number; underflow: rounded to zero; no_bits:
    below twice the smallest number, so that no bit of the mantissa is left (those that underflow are among them)."""

    overflow: float
    underflow: float
    no_bits: float


@dataclass(frozen=True)
class InFormat:
    """A tensor in one number format. sqnr: signal over quantisation noise of the median channel, dB, and `losses`, both
    with the scale that training gives the tensor; `plain`: without any scale."""

    sqnr: float
    losses: Losses
    plain: Losses


@dataclass(frozen=True)
class TensorNumbers:
    """values: seen in all; sampled: on which the statistics stand. largest: of all values; binades: powers of two
    between the smallest but 0.1% and the largest; kurtosis: 3 for a normal distribution; outlier: the largest rms of a
    channel over the median channel's."""

    values: int
    sampled: int
    largest: float
    rms: float
    binades: float
    kurtosis: float
    outlier: float
    formats: dict[str, InFormat]

    @property
    def finite(self) -> bool:
        """Whether all values are finite."""
        return math.isfinite(self.largest)


@dataclass(frozen=True)
class Update:
    """What the optimizer does to a layer's weights, at the recipe's peak learning rate. ratio: rms of the update over
    rms of the weight; lost: share of the updates that rounding to nearest loses, by storage format; lost_on_average:
    the same for bf16 over the schedule, each step counted by its learning rate."""

    parameters: int
    ratio: float
    lost: dict[str, float]
    lost_on_average: float


@dataclass(frozen=True)
class LayerNumbers:
    """A module with weights of its own. shape: of its weight. gradient_snr: norm of the weight's gradient over the
    noise that each layer format brings into it, dB."""

    name: str
    kind: Kind
    type: str
    shape: tuple[int, ...]
    tensors: dict[str, TensorNumbers] = field(default_factory=dict)
    gradient_snr: dict[str, float] = field(default_factory=dict)
    update: Update | None = None
