"""Weights of the members of an ensemble: all equal, or few non-negative ones fitted on held-out rows. Pure numpy and
scipy.

A mean of probabilities is never worse in negative log-likelihood than its members on average, by Jensen's inequality.
It is less sure than they are, so that it is calibrated after averaging (arXiv 2002.06470).

Held-out rows are few, and their groups fewer: a member that was lucky with some of them would get all the weight. A
stack is therefore pulled towards equal weights, as far as the groups that it was not fitted on do not speak against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls

from lmrecipes.combine.bootstrap import homes_of
from lmrecipes.combine.calibration import best_temperature
from lmrecipes.combine.combination import Blend
from lmrecipes.combine.values import LEAST, Floats
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.models.heads import HeadSpec

CLOSE = 1e-9
"""Fitting ends where a step of it lowers the loss by less, in nats."""
PULLS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, math.inf)
"""Towards equal weights: how many rows, as a share of the held-out ones, each member would have to explain alike."""
FOLDS = 10
"""Parts of the groups, each of which is left out once."""


def average(
    spec: HeadSpec, members: Sequence[Floats], targets: NDArray[Any], groups: NDArray[np.uint64] | None = None
) -> Blend:
    """Equal weights, and the temperature that is best for these held-out rows, whatever their groups."""
    return _calibrated(spec, (1.0 / len(members),) * len(members), members, targets)


def stack(
    spec: HeadSpec, members: Sequence[Floats], targets: NDArray[Any], groups: NDArray[np.uint64] | None = None
) -> Blend:
    """The weights, not negative and together 1, of least negative log-likelihood of the weighted mean of probabilities
    on these held-out rows (arXiv 1704.02030, section 3.1); of regression of least squared error (Breiman, Stacked
    regressions, 1996). Then the temperature.

    groups: of the rows, see `Outputs`; None: each is its own. Of `PULLS` the strongest is taken whose loss on groups
    that are left out is at most one standard error above the best (Hastie, Tibshirani and Friedman, The elements of
    statistical learning, section 7.10).
    """
    fit, losses = (_squares, _squared) if spec.kind == "regression" else (_likelihoods, _logs)
    scores = _scores(spec, members, targets)
    homes = homes_of(groups)
    cases = len(scores) // max(1, len(targets))
    homes = np.repeat(np.arange(len(targets)) if homes is None else homes, cases)
    weights = fit(scores, _pull(scores, homes, fit, losses))
    return _calibrated(spec, tuple(weights.tolist()), members, targets)


Fit = Callable[[Floats, float], Floats]
"""What members gave [cases, members], a pull -> weights."""


def _pull(scores: Floats, homes: NDArray[np.int64], fit: Fit, losses: Callable[[Floats], Floats]) -> float:
    """The pull, see `stack`. homes: the group of each case, from 0."""
    groups = int(homes.max(initial=-1)) + 1
    folds = min(FOLDS, groups)
    if folds < 2:
        return math.inf
    fold = np.argsort(np.argsort(hash_uniform(hash_key("stack"), np.arange(groups)))) % folds
    left_out = [fold[homes] == number for number in range(folds)]
    by_pull = []
    for pull in PULLS:
        found = np.empty(len(scores))
        for out in left_out:
            found[out] = losses(scores[out] @ fit(scores[~out], pull))
        by_pull.append(found)
    best = min(range(len(PULLS)), key=lambda at: by_pull[at].mean())
    return max(pull for pull, found in zip(PULLS, by_pull, strict=True) if _as_good(found - by_pull[best], homes))


def _as_good(worse: Floats, homes: NDArray[np.int64]) -> bool:
    """Whether a mean difference is at most its standard error, which is that of sums over groups."""
    sums = np.bincount(homes, worse - worse.mean())
    error = np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)) / len(worse)
    return bool(worse.mean() <= error)


def _logs(mixed: Floats) -> Floats:
    return np.asarray(-np.log(np.maximum(mixed, LEAST)))


def _squared(errors: Floats) -> Floats:
    return np.asarray(errors**2)


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


def _likelihoods(given: Floats, pull: float) -> Floats:
    """argmax over the simplex of mean(log(given @ weights)) + pull x mean(log(weights)), which is concave; the second
    part is the logarithm of a symmetric Dirichlet prior. By sequential least squares from equal weights, so that equal
    members keep equal ones."""
    members = given.shape[1]
    equal = np.full(members, 1.0 / members)
    if math.isinf(pull) or members == 1:
        return equal
    given = np.maximum(given, LEAST)

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = given @ weights
        slope = (given / mixed[:, None]).mean(axis=0) + pull / members / weights
        return float(-np.log(mixed).mean() - pull * np.log(weights).mean()), -slope

    whole = {"type": "eq", "fun": lambda weights: weights.sum() - 1.0, "jac": np.ones_like}
    bounds = [(LEAST, 1.0)] * members
    found = minimize(loss, equal, jac=True, method="SLSQP", bounds=bounds, constraints=whole, options={"ftol": CLOSE})
    weights = np.where(found.x < CLOSE, 0.0, found.x)
    return np.asarray(weights / weights.sum())


def _squares(errors: Floats, pull: float) -> Floats:
    """argmin over the simplex of mean((errors @ weights)^2) + pull x mean(errors^2) x |weights|^2, whose second part is
    least for equal weights. By non-negative least squares: of |E v|^2 + (sum(v) - 1)^2 the minimum over v >= 0 has the
    direction that is wanted, for along v = s w the best s leaves q / (1 + q), which rises with q = |E w|^2."""
    members = errors.shape[1]
    if math.isinf(pull):
        return np.full(members, 1.0 / members)
    scale = float(np.sqrt(np.mean(errors**2))) or 1.0
    reduced = np.linalg.qr(errors / (scale * np.sqrt(len(errors))), mode="r")
    ridge = max(1e-4, math.sqrt(pull)) * np.eye(members)  # of equal members, equal weights
    system = np.vstack([reduced, ridge, np.ones((1, members))])
    found, _ = nnls(system, np.concatenate([np.zeros(len(system) - 1), [1.0]]))
    return np.asarray(found / found.sum())
