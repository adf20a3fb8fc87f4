"""Weights of the members of an ensemble: all equal, or few non-negative ones fitted on held-out rows. Pure numpy and
scipy.

A mean of probabilities is never worse in negative log-likelihood than its members on average, by Jensen's inequality.
It is less sure than they are, so that it is calibrated after averaging (arXiv 2002.06470).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lmrecipes.combine.calibration import best_temperature
from lmrecipes.combine.combination import Blend
from lmrecipes.combine.values import LEAST, Floats
from lmrecipes.models.heads import HeadSpec

CLOSE = 1e-9
"""Fitting ends where a round of it lowers the loss by less, in nats."""
ROUNDS = 20_000


def average(spec: HeadSpec, members: Sequence[Floats], targets: NDArray[Any]) -> Blend:
    """Equal weights, and the temperature that is best for these held-out rows."""
    return _calibrated(spec, (1.0 / len(members),) * len(members), members, targets)


def stack(spec: HeadSpec, members: Sequence[Floats], targets: NDArray[Any]) -> Blend:
    """The weights, not negative and together 1, of least negative log-likelihood of the weighted mean of probabilities
    on these held-out rows (arXiv 1704.02030, section 3.1); of regression of least squared error (Breiman, Stacked
    regressions, 1996). Then the temperature."""
    fit = _squares if spec.kind == "regression" else _likelihoods
    weights = fit(_scores(spec, members, targets))
    return _calibrated(spec, tuple(weights.tolist()), members, targets)


def _calibrated(spec: HeadSpec, weights: tuple[float, ...], members: Sequence[Floats], targets: NDArray[Any]) -> Blend:
    mean = Blend(weights)(spec, members)
    return Blend(weights, best_temperature(spec, mean, targets))


def _scores(spec: HeadSpec, members: Sequence[Floats], targets: NDArray[Any]) -> Floats:
    """[cases, members]: what each member gave to what is true; of regression its errors."""
    if spec.kind == "regression":
        return np.stack([found - targets for found in members], axis=1)
    if spec.kind == "classification":
        rows = np.arange(len(targets))
        return np.stack([found[rows, targets.astype(np.int64)] for found in members], axis=1)
    return np.stack([np.where(targets > 0, found, 1.0 - found).ravel() for found in members], axis=1)


def _likelihoods(given: Floats) -> Floats:
    """argmax over the simplex of mean(log(given @ weights)), which is concave: expectation-maximisation from equal
    weights. Every round raises it; equal members keep equal weights."""
    given = np.maximum(given, LEAST)
    weights = np.full(given.shape[1], 1.0 / given.shape[1])
    before = -np.inf
    for _ in range(ROUNDS):
        mixed = given @ weights
        reached = float(np.log(mixed).mean())
        if reached - before < CLOSE:
            break
        before = reached
        weights = weights * (given / mixed[:, None]).mean(axis=0)
    return np.asarray(weights / weights.sum())


def _squares(errors: Floats) -> Floats:
    """argmin over the simplex of mean((errors @ weights)^2), by non-negative least squares: of |E v|^2 + (sum(v) - 1)^2
    the minimum over v >= 0 has the direction that is wanted, for along v = s w the best s leaves q / (1 + q), which
    rises with q = |E w|^2."""
    members = errors.shape[1]
    scale = float(np.sqrt(np.mean(errors**2))) or 1.0
    reduced = np.linalg.qr(errors / (scale * np.sqrt(len(errors))), mode="r")
    ridge = 1e-4 * np.eye(members)  # of equal members, equal weights
    system = np.vstack([reduced, ridge, np.ones((1, members))])
    found, _ = nnls(system, np.concatenate([np.zeros(len(system) - 1), [1.0]]))
    return np.asarray(found / found.sum())
