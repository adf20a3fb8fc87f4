"""The power law of a learning curve, L(n) = eps + b n^-a, fitted without a solver. Pure numpy.

ADO (arXiv 2410.11820) minimises a Huber loss of the log-losses by L-BFGS from a grid of starts, with a at most 0.8 and
counted as at least 0.05. For a fixed `a` the law is linear in (eps, b), so we go through a grid of exponents in that
range and solve each in closed form by least squares of the relative errors: the best of them is a global optimum, and
no iteration amplifies the last bits of the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

EXPONENTS = np.arange(5, 81) / 100
"""Exponents that are tried."""


@dataclass(frozen=True)
class PowerLaw:
    """L(n) = floor + scale n^-exponent, with floor and scale at least 0."""

    floor: float
    scale: float
    exponent: float

    def speed(self, n: float) -> float:
        """-dL/dn at `n`: how much the loss falls per unit of n."""
        return self.exponent * self.scale * n ** (-self.exponent - 1)


def fit_power_law(n: Sequence[float], losses: Sequence[float], counts: Sequence[float]) -> PowerLaw:
    """The law nearest to `losses` (above 0) at `n` (above 0, at least two different ones), all [points].

    counts: how many observations each loss is the mean of. A curve that rises gives scale 0.
    """
    at, loss = np.asarray(n, np.float64), np.asarray(losses, np.float64)
    weights = np.asarray(counts, np.float64) / loss**2
    weights /= weights.sum()
    x = at[None, :] ** -EXPONENTS[:, None]  # [exponents, points]
    x_mean, loss_mean = x @ weights, float(loss @ weights)
    centred = x - x_mean[:, None]
    scale = np.maximum(centred @ (weights * (loss - loss_mean)) / (centred**2 @ weights), 0.0)
    floor = loss_mean - scale * x_mean
    through_zero = x @ (weights * loss) / (x**2 @ weights)
    scale, floor = np.where(floor < 0, through_zero, scale), np.maximum(floor, 0.0)
    errors = (loss[None, :] - floor[:, None] - scale[:, None] * x) ** 2 @ weights
    best = int(errors.argmin())
    return PowerLaw(float(floor[best]), float(scale[best]), float(EXPONENTS[best]))
