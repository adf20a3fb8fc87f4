"""What is mixed, and what is asked of an order. Pure numpy; a row is known by its number over all sources together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import hash_key, hash_uniform

Array = NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Sources of so many `rows`, drawn in proportion to `weights` (heaviest first, which sum to 1)."""

    rows: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def offsets(self) -> list[int]:
        """Number of each source's first row, and at the end that of all rows."""
        return [0, *accumulate(self.rows)]

    def sources(self, ids: Array) -> Array:
        """Source of each row."""
        return np.searchsorted(self.offsets, ids, side="right") - 1

    def corrected(self, lengths: Array) -> Workload:
        """Weights on samples by which the expected shares of tokens are the weights: each over its mean length."""
        means = [lengths[a:b].mean() for a, b in zip(self.offsets[:-1], self.offsets[1:], strict=True)]
        raw = [weight / mean for weight, mean in zip(self.weights, means, strict=True)]
        return replace(self, weights=tuple(weight / sum(raw) for weight in raw))


def many(count: int, rows: int) -> Workload:
    """`count` sources of `rows` rows with weights between 1 and 10 to each other."""
    drawn = np.sort(1 + 9 * hash_uniform(hash_key("weights", count), np.arange(count)))[::-1]
    return Workload((rows,) * count, tuple((drawn / drawn.sum()).tolist()))


def lengths_of(rows: Sequence[int], means: Sequence[float], longest: int) -> Array:
    """Tokens of each row of each source: exponential about the source's mean, at least 1, at most `longest`."""
    parts = []
    for source, (count, mean) in enumerate(zip(rows, means, strict=True)):
        uniform = hash_uniform(hash_key("lengths", source), np.arange(count))
        parts.append(np.minimum(1 + (-mean * np.log1p(-uniform)).astype(np.int64), longest))
    return np.concatenate(parts)


def largest_deviation(
    sources: Array, weights: Sequence[float], every: int = 1, before: int = 0, counts: Sequence[int] = ()
) -> float:
    """Largest |samples of a source - its share|, over all sources and all prefixes that are a multiple of `every` long.

    sources: those of the samples from index `before` on, where `counts` were drawn already.
    """
    prefixes = before + np.arange(every, len(sources) + 1, every)
    worst = 0.0
    for source, weight in enumerate(weights):
        drawn = np.cumsum(sources == source)[every - 1 :: every] + (counts[source] if counts else 0)
        worst = max(worst, float(np.abs(drawn - weight * prefixes).max(initial=0.0)))
    return worst


@dataclass(frozen=True)
class TokenError:
    """share: largest error of a source's share of all tokens; tokens: largest distance from its share of a prefix."""

    share: float
    tokens: float


def token_error(sources: Array, lengths: Array, shares: Sequence[float]) -> TokenError:
    """How far the tokens of an order (source and length of each sample, [k]) are from the sources' shares."""
    total = np.cumsum(lengths)
    away = [np.cumsum(np.where(sources == source, lengths, 0)) - share * total for source, share in enumerate(shares)]
    return TokenError(max(abs(part[-1]) for part in away) / total[-1], max(float(np.abs(part).max()) for part in away))


def same_batches(ours: Sequence[Array], reference: Sequence[Array]) -> int:
    """How many global batches hold the same rows as those at the same place of the reference."""
    return sum(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(ours, reference, strict=True))


def union(ranks: Sequence[Sequence[Array]]) -> list[Array]:
    """Global batches from each rank's batches."""
    return [np.concatenate(parts) for parts in zip(*ranks, strict=True)]
