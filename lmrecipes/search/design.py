"""Which shares to try: points around the recipe's own, each a pure function of the seed and its number.

RegMix (arXiv 2407.01492) draws from a Dirichlet around the natural shares. With small concentrations that gives nearly
one-hot mixtures, in which most heads of a fine-tuned model learn nothing and losses stop telling mixtures apart. Here
the logarithms of the shares are normal around the recipe's (a logistic-normal distribution, Aitchison and Shen 1980),
so that "twice as much" and "half as much" are equally likely for a small task and for a large one.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import hash_key, hash_uniform, permute

Floats = NDArray[np.float64]

SPREADS = (0.3, 1.1)
"""Least and largest standard deviation of a point's log-shares: its shares differ from the recipe's by a factor of
about 1.3 to 3. Varied from point to point, as RegMix varies the concentration."""
BLOCK = 8
"""Points that are stratified together: in a block each task's factors fall into 8 equally likely ranges, one point in
each. Later blocks leave earlier points as they are, so that a search can be extended."""


def design(own: Floats, points: int, seed: int) -> Floats:
    """Shares to run, [points, tasks], each row summing to 1. own: the recipe's shares, [tasks], all above 0."""
    number = np.arange(points)
    return _around(own, _stratified(number, len(own), seed), _spreads(_stratified(number, 1, seed, "spread")))


def candidates(own: Floats, points: int, seed: int) -> Floats:
    """Shares to choose from, [points, tasks]: as the design's, but many, and with the recipe's own as the first."""
    number = np.arange(points * len(own))
    uniform = hash_uniform(hash_key(seed, "search", "candidates"), number).reshape(points, len(own))
    spread = hash_uniform(hash_key(seed, "search", "candidates", "spread"), np.arange(points))[:, None]
    return np.concatenate([own[None], _around(own, uniform, _spreads(spread))])[:points]


def _around(own: Floats, uniform: Floats, spread: Floats) -> Floats:
    """The shares whose log-ratios to `own` are `spread` times the normal quantiles of `uniform` [points, tasks]."""
    inside = np.clip(uniform, 2.0**-33, 1 - 2.0**-33)
    normal = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])(inside)
    shares = own * np.exp(spread * normal)
    out: Floats = shares / shares.sum(axis=1, keepdims=True)
    return out


def _spreads(uniform: Floats) -> Floats:
    low, high = SPREADS
    return low + (high - low) * uniform


def _stratified(number: NDArray[np.int64], dimensions: int, seed: int, purpose: str = "design") -> Floats:
    """Uniform numbers in [0, 1), [points, dimensions]: a Latin hypercube in every block (McKay et al. 1979)."""
    block, place = np.divmod(number, BLOCK)
    columns = []
    for dimension in range(dimensions):
        parts = (seed, "search", purpose, dimension)
        keys = np.array([hash_key(*parts, int(b)) for b in block], np.uint64)
        within = hash_uniform(hash_key(*parts, "within"), number)
        columns.append((permute(place, BLOCK, keys) + within) / BLOCK)
    return np.stack(columns, axis=1)
