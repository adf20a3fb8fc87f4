"""From proxies to weights: a regression of each task's cost on the shares, and the mixture that it promises most of.

A task's loss falls with the logarithm of how much of it was read (data mixing laws, arXiv 2403.16952, and scaling laws
in general), and the other tasks' shares help or hurt a little. So each task's cost is regressed on the log-shares of
all tasks and the square of its own, by Bayesian ridge regression, which sets its penalties by the evidence: noise alone
gives a flat fit. A sum of such terms has its minimum inside the simplex; one that is linear in the shares, the simplest
of RegMix, would always end at a corner of what was tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmrecipes.search.design import candidates

Floats = NDArray[np.float64]

CANDIDATES = 10_000
BEST = 100
"""The answer is the mean of this many best candidates (RegMix, section 3.3): steadier than the single best."""
RESOLUTION = 0.0001
FOLDS = 8
"""Parts of the proxies that are left out in turn."""


@dataclass(frozen=True)
class Found:
    """What the fit says. Costs: lower is better.

    shares: the found mixture, [tasks], rounded. own_costs, costs: predicted at the recipe's shares and at the
    found ones, [targets]. gain: how much the mean cost falls from one to the other; gain_error: its standard error
    (jackknife over the folds). rank_correlation: Spearman's, of the proxies' mean cost with that predicted by fits
    that have not seen them.
    """

    shares: Floats
    own_costs: Floats
    costs: Floats
    gain: float
    gain_error: float
    rank_correlation: float

    @property
    def promising(self) -> bool:
        """Whether the predicted gain stands out of the fit's own uncertainty enough to be worth measuring."""
        return self.gain > self.gain_error


def find(shares: Floats, costs: Floats, targets: NDArray[np.int64], own: Floats, seed: int) -> Found:
    """The mixture with the least predicted mean cost.

    shares: of each proxy, [proxies, tasks]. costs: [proxies, targets]. targets: number of the task that each column of
    `costs` is of. own: the recipe's shares, [tasks].
    """
    choices = candidates(own, CANDIDATES, seed)
    best = np.argsort(_predict(shares, costs, targets, choices).mean(axis=1), kind="stable")[:BEST]
    found = rounded(choices[best].mean(axis=0))
    pair = np.stack([own, found])
    own_costs, found_costs = _predict(shares, costs, targets, pair)
    held_out, gains = np.empty(len(costs)), []
    folds = min(FOLDS, len(costs))
    for fold in range(folds):
        out = np.arange(len(costs)) % folds == fold
        held_out[out] = _predict(shares[~out], costs[~out], targets, shares[out]).mean(axis=1)
        before, after = _predict(shares[~out], costs[~out], targets, pair).mean(axis=1)
        gains.append(before - after)
    error = np.sqrt((folds - 1) * np.var(gains))
    gain = float(own_costs.mean() - found_costs.mean())
    return Found(found, own_costs, found_costs, gain, float(error), rank_correlation(held_out, costs.mean(axis=1)))


def rounded(shares: Floats) -> Floats:
    """Shares rounded to 0.0001 (and at least that), as people write them; they still sum to 1."""
    counts = np.maximum(1, np.floor(shares / RESOLUTION)).astype(np.int64)
    missing = round(1 / RESOLUTION) - int(counts.sum())
    counts[np.argsort(counts - shares / RESOLUTION, kind="stable")[: max(0, missing)]] += 1
    counts[np.argmax(counts)] += min(0, missing)
    out: Floats = np.round(counts * RESOLUTION, 4)
    return out


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation (without ties); 0 where one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def _predict(shares: Floats, costs: Floats, targets: NDArray[np.int64], at: Floats) -> Floats:
    """Costs [points, targets] at the shares `at` [points, tasks] of a fit to the proxies."""
    from sklearn.linear_model import BayesianRidge

    centre, scale = np.log(shares).mean(axis=0), np.maximum(np.log(shares).std(axis=0), 1e-9)
    x, x_at = ((np.log(part) - centre) / scale for part in (shares, at))
    columns = []
    for column, task in enumerate(targets):
        model = BayesianRidge()
        model.fit(np.column_stack([x, x[:, task] ** 2]), costs[:, column])
        columns.append(model.predict(np.column_stack([x_at, x_at[:, task] ** 2])))
    return np.stack(columns, axis=1)
