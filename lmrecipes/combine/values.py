"""What a head says as probabilities, and back. Pure numpy and scipy.

Probabilities are fp64: of classification [n, outputs] with rows that sum to 1, whatever the task's loss, so that models
that were trained with different losses can be averaged; of multi_label [n, outputs], each label by itself. A regression
task has none: its values are the predicted numbers [n], in the target's units, and pass through unchanged.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from lmrecipes.models.heads import HeadSpec

Floats = NDArray[np.float64]

LEAST = 1e-12
"""A probability below it counts as this much: one row that a model excludes wrongly does not make its loss infinite."""


def probabilities(spec: HeadSpec, values: NDArray[Any]) -> Floats:
    """The probabilities that a head's values (see `Head.predictions`) stand for."""
    found = np.asarray(values, np.float64)
    if spec.kind == "regression":
        return found
    if spec.kind == "multi_label":
        return np.asarray(expit(found))
    if spec.loss == "binary_cross_entropy":  # each class against the rest
        shares = np.maximum(expit(found), LEAST)
        return np.asarray(shares / shares.sum(-1, keepdims=True))
    if spec.loss == "mean_squared_error":  # estimates of probabilities, which may leave [0, 1]
        return _nearest(found)
    return np.asarray(softmax(found, axis=-1))


def values_of(spec: HeadSpec, found: Floats) -> NDArray[np.float32]:
    """Values in the head's own units that stand for these probabilities: the inverse of `probabilities`, up to a
    constant of each row."""
    if spec.kind == "regression" or spec.loss == "mean_squared_error":
        values = found
    elif spec.kind == "multi_label" or spec.loss == "binary_cross_entropy":
        values = logit(found)
    else:
        values = np.log(np.maximum(found, LEAST))
    return values.astype(np.float32)


def scaled(spec: HeadSpec, found: Floats, temperature: float) -> Floats:
    """Probabilities whose logarithms (of multi_label: log-odds) are divided by a temperature (arXiv 1706.04599)."""
    if spec.kind == "regression" or temperature == 1.0:
        return found
    if spec.kind == "multi_label":
        return np.asarray(expit(logit(found) / temperature))
    return np.asarray(softmax(np.log(np.maximum(found, LEAST)) / temperature, axis=-1))


def _nearest(found: Floats) -> Floats:
    """The distribution nearest to each row [n, outputs]; the largest stays the largest (Duchi et al., Efficient
    projections onto the l1-ball, 2008, figure 1)."""
    falling = -np.sort(-found, axis=-1)
    above = (np.cumsum(falling, axis=-1) - 1.0) / np.arange(1, found.shape[-1] + 1)
    kept = (falling > above).sum(axis=-1, keepdims=True)
    return np.maximum(found - np.take_along_axis(above, kept - 1, axis=-1), 0.0)


def logit(found: Floats) -> Floats:
    """Log-odds; probabilities closer to 0 or 1 than `LEAST` count as that close."""
    kept = np.clip(found, LEAST, 1.0 - LEAST)
    return np.asarray(np.log(kept) - np.log1p(-kept))
