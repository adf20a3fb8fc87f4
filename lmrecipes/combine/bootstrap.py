"""How sure a difference between models is: metrics on rows drawn again and again from the same test rows. Pure numpy.

Every model is scored on the same draws, so that differences are paired (Efron and Tibshirani, An introduction to the
bootstrap, 1993, chapters 13 and 16). Where rows come in groups (`source.group`), whole groups are drawn: rows of one
group are right or wrong together, so that draws of single rows would give intervals that are too narrow (Davison and
Hinkley, Bootstrap methods and their application, 1997, section 3.8). With few groups they are still somewhat narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.combine.values import Floats
from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.metrics import task_metrics
from lmrecipes.models.heads import HeadSpec

RESAMPLES = 2000
CONFIDENCE = 0.95
AT_ONCE = 2**22
"""Drawn rows that are in memory at once."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Resamples:
    """Draws with replacement, of as many rows as there are or, where these have `homes`, of as many groups: a function
    of the key alone.

    homes: int64 [rows], the number of each row's group, from 0.
    """

    rows: int
    key: int = hash_key("bootstrap")
    draws: int = RESAMPLES
    homes: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, rows: int, groups: NDArray[np.uint64] | None) -> Resamples:
        """groups: as `Outputs` has them. A single group, which every draw would repeat, is taken for single rows."""
        homes = homes_of(groups)
        return cls(rows, homes=None if homes is None or homes.max() == 0 else homes)

    @property
    def groups(self) -> int | None:
        """How many there are; None where rows are drawn."""
        return None if self.homes is None else int(self.homes.max()) + 1

    def counts(self) -> Iterator[Floats]:
        """How often each row is drawn, in blocks [draws, rows]."""
        units = self.groups or self.rows
        block = max(1, AT_ONCE // self.rows)
        for start in range(0, self.draws, block):
            stop = min(start + block, self.draws)
            uniform = hash_uniform(self.key, np.arange(start * units, stop * units, dtype=np.int64))
            places = (uniform * units).astype(np.int64).reshape(-1, units) + units * np.arange(stop - start)[:, None]
            drawn = np.bincount(places.ravel(), minlength=places.size).reshape(places.shape).astype(np.float64)
            yield drawn if self.homes is None else drawn[:, self.homes]


def homes_of(groups: NDArray[np.uint64] | None) -> NDArray[np.int64] | None:
    """Hashes of groups -> their numbers from 0, [rows]."""
    return None if groups is None else np.unique(groups, return_inverse=True)[1].astype(np.int64)


def resampled_means(rows: Floats, resamples: Resamples) -> Floats:
    """The mean of a number of each row in every draw, [draws]."""
    return np.concatenate([counts @ rows / counts.sum(axis=1) for counts in resamples.counts()])


def resampled_metric(
    metric: str, spec: HeadSpec, values: NDArray[Any], targets: NDArray[Any], resamples: Resamples
) -> Floats:
    """A metric of a task (see `task_metrics`) in every draw, [draws]."""
    of_counts = _by_counts(metric, spec, np.asarray(values, np.float64), np.asarray(targets))
    if of_counts is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.concatenate([of_counts(counts) for counts in resamples.counts()])
    draws = (np.repeat(np.arange(len(values)), drawn.astype(np.int64)) for c in resamples.counts() for drawn in c)
    return np.asarray([task_metrics((metric,), spec, values[rows], targets[rows])[metric] for rows in draws])


def interval(drawn: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The middle of the draws: percentiles. NaN where the metric has no value in some draw."""
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return low, high


Counted = Callable[[Floats], Floats]
"""How often each row counts, [draws, rows] -> the metric, [draws]."""


def _by_counts(metric: str, spec: HeadSpec, values: Floats, targets: NDArray[Any]) -> Counted | None:
    """A metric as a function of counts, where it is one of sums over rows; None for others."""
    if spec.of_tokens:
        return _of_tokens(metric, values, targets.astype(np.float64))
    if spec.kind == "regression":
        return _of_numbers(metric, values, targets.astype(np.float64))
    if spec.kind == "multi_label":
        return _of_labels(metric, values > 0, targets > 0)
    return _of_classes(metric, values.argmax(axis=1), targets.astype(np.int64), spec.outputs)


def _of_tokens(metric: str, values: Floats, targets: Floats) -> Counted:
    losses, right, tokens, size = values[:, 0], values[:, 1], targets[:, 0], targets[:, 1]
    return {
        "perplexity": lambda counts: np.exp(counts @ losses / (counts @ tokens)),
        "bits_per_byte": lambda counts: counts @ losses / (math.log(2) * (counts @ size)),
        "token_accuracy": lambda counts: counts @ right / (counts @ tokens),
    }[metric]


def _of_numbers(metric: str, values: Floats, targets: Floats) -> Counted:
    errors = values - targets
    if metric in ("mean_squared_error", "mean_absolute_error"):
        each = errors**2 if metric == "mean_squared_error" else np.abs(errors)
        return lambda counts: counts @ each / counts.sum(axis=1)
    if metric == "pearson":
        return lambda counts: _correlation(counts, values[None], targets[None])
    found, true = _Ranks.of(values), _Ranks.of(targets)
    return lambda counts: _correlation(counts, found(counts), true(counts))


def _of_classes(metric: str, chosen: NDArray[np.int64], classes: NDArray[np.int64], outputs: int) -> Counted:
    right = (chosen == classes).astype(np.float64)
    if metric == "accuracy":
        return lambda counts: counts @ right / counts.sum(axis=1)
    is_true, is_chosen = np.eye(outputs)[classes], np.eye(outputs)[chosen]

    def balanced(counts: Floats) -> Floats:
        return np.asarray(np.nanmean((counts @ (is_true * right[:, None])) / (counts @ is_true), axis=1))

    def macro(counts: Floats) -> Floats:
        hits, all_of = counts @ (is_true * is_chosen), counts @ is_true + counts @ is_chosen
        return np.asarray(np.nanmean(2 * hits / all_of, axis=1))  # of the classes that occur or are chosen

    return balanced if metric == "balanced_accuracy" else macro


def _of_labels(metric: str, chosen: NDArray[np.bool_], holds: NDArray[np.bool_]) -> Counted | None:
    if metric == "average_precision":
        return None
    hits, all_of = (chosen & holds).astype(np.float64), chosen.astype(np.float64) + holds
    if metric == "micro_f1":
        hits, all_of = hits.sum(axis=1, keepdims=True), all_of.sum(axis=1, keepdims=True)
    return lambda counts: np.asarray(np.nan_to_num(2 * (counts @ hits) / (counts @ all_of)).mean(axis=1))


def _correlation(counts: Floats, one: Floats, other: Floats) -> Floats:
    """Pearson's correlation of two numbers of each row [draws or 1, rows], rows counted as often as they are drawn."""
    share = counts / counts.sum(axis=1, keepdims=True)
    apart = one - (share * one).sum(axis=1, keepdims=True)
    beside = other - (share * other).sum(axis=1, keepdims=True)
    spread = np.sqrt((share * apart**2).sum(axis=1) * (share * beside**2).sum(axis=1))
    return np.asarray((share * apart * beside).sum(axis=1) / spread)


@dataclass(frozen=True)
class _Ranks:
    """Ranks of numbers when each counts several times; equal ones share the mean of theirs."""

    places: NDArray[np.int64]
    values: int

    @classmethod
    def of(cls, numbers: Floats) -> _Ranks:
        unique, places = np.unique(numbers, return_inverse=True)
        return cls(places, len(unique))

    def __call__(self, counts: Floats) -> Floats:
        order = np.argsort(self.places, kind="stable")
        starts = np.searchsorted(self.places[order], np.arange(self.values))
        of_value = np.add.reduceat(counts[:, order], starts, axis=1)
        ranks = np.cumsum(of_value, axis=1) - (of_value - 1) / 2
        return np.asarray(ranks[:, self.places])
