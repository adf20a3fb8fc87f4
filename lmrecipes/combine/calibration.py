"""How well probabilities say how sure a model is, and one number that makes them say it better. Pure numpy and scipy.

Probabilities are those of `lmrecipes.combine.values`: of classification one distribution a row; of multi_label each
label is a distribution of its own (Bernoulli), and rows x labels count alike. A regression task has numbers only: they
are taken as means of Gaussians with one `deviation`, that of the residuals on the validation split.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from lmrecipes.combine.values import LEAST, Floats, scaled
from lmrecipes.models.heads import HeadSpec

BINS = 15
"""Of equal width, as in arXiv 1706.04599, section 2."""
LARGEST = 50.0
"""Temperatures are looked for between 1 / LARGEST and this."""


def row_losses(spec: HeadSpec, found: Floats, targets: NDArray[Any], deviation: float = 1.0) -> Floats:
    """Negative log-likelihood of each row in nats, [n]; of multi_label the mean over its labels."""
    if spec.kind == "regression":
        errors = (found - targets) / deviation
        return np.asarray(0.5 * errors**2 + math.log(deviation) + 0.5 * math.log(2 * math.pi))
    if spec.kind == "classification":
        chosen = found[np.arange(len(found)), targets.astype(np.int64)]
        return np.asarray(-np.log(np.maximum(chosen, LEAST)))
    right = np.where(targets > 0, found, 1.0 - found)
    return np.asarray(-np.log(np.maximum(right, LEAST)).mean(axis=1))


def deviation_of(found: Floats, targets: NDArray[Any]) -> float:
    """The root of the mean squared residual of a regression task; never 0."""
    return float(np.sqrt(np.mean((found - targets) ** 2))) or LEAST


def best_temperature(spec: HeadSpec, found: Floats, targets: NDArray[Any]) -> float:
    """The temperature (see `scaled`) of least negative log-likelihood on these rows (arXiv 1706.04599, section 4.2).

    The loss is convex in 1 / temperature, so that there is one minimum. 1 where there is nothing to scale.
    """
    if spec.kind == "regression" or len(found) == 0:
        return 1.0
    bound = math.log(LARGEST)
    best = minimize_scalar(
        lambda log: row_losses(spec, scaled(spec, found, math.exp(log)), targets).mean(),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(math.exp(best.x))


def calibration_error(spec: HeadSpec, found: Floats, targets: NDArray[Any], deviation: float = 1.0) -> float:
    """Expected calibration error with `BINS` bins, 0 where probabilities are frequencies.

    classification: of the likeliest class, mean over rows of |share right - mean probability| of the row's bin.
    multi_label: the same of every label's probability against how often it holds. regression: mean over the quantiles
    1/15, ..., 14/15 of |share of targets below the predicted quantile - quantile| (arXiv 1807.00263, section 3).
    """
    if spec.kind == "regression":
        levels = np.arange(1, BINS) / BINS
        places = ndtr((targets - found) / deviation)
        return float(np.abs((places[:, None] <= levels).mean(axis=0) - levels).mean())
    if spec.kind == "classification":
        sure, right = found.max(axis=1), found.argmax(axis=1) == targets
    else:
        sure, right = found.ravel(), np.asarray(targets).ravel() > 0
    bins = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(bins, right.astype(np.float64) - sure, minlength=BINS)
    return float(np.abs(gaps).sum() / len(sure))
