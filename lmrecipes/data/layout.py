"""Step layout: a step's examples -> rank x micro-batch x bucket. Pure numpy; it changes where, never what.

A micro-batch is computed in one forward and one backward as a few *buckets*, each a rectangle of texts of nearly the
same length: padding is close to none and no attention mask between texts is needed, while gradients are still reduced
once per micro-batch. Each rank has the same number of micro-batches and of buckets in every step of a run; where there
is too little work, some are empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lmrecipes.planning.batch import BatchPlan

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class StepLayout:
    """positions[rank][micro-batch][bucket]: indices into the step's examples; each occurs exactly once."""

    positions: list[list[list[Positions]]]


def lay_out(lengths: NDArray[np.int64], plan: BatchPlan, buckets: int) -> StepLayout:
    """Spread the step's texts (lengths in tokens, [examples]) over ranks, micro-batches and buckets.

    Texts are dealt in order of length to the ranks (boustrophedon: 0 1 1 0 0 1 ...), so that tokens balance; each
    rank's texts are cut into micro-batches of at most `plan.micro_examples`, and each of those into buckets that
    minimise the padded size.
    """
    order = np.argsort(-lengths, kind="stable")
    deal = np.concatenate([np.arange(plan.world_size), np.arange(plan.world_size)[::-1]])
    owner = np.resize(deal, len(order))
    ranks = []
    for rank in range(plan.world_size):
        mine = order[owner == rank]
        micros = [mine[i :: plan.accumulation] for i in range(plan.accumulation)]
        ranks.append([cut_into_buckets(micro, lengths, buckets) for micro in micros])
    return StepLayout(ranks)


def cut_into_buckets(positions: Positions, lengths: NDArray[np.int64], buckets: int) -> list[Positions]:
    """Cut texts sorted by falling length into contiguous buckets of least padded size (dynamic programme over cuts).

    Cutting between texts of one length never pays, so only runs of equal length are considered. cost[i, j] = texts in
    the runs i..j-1 times the length of run i: a bucket is as wide as its first, longest text; an empty one (i = j)
    costs nothing. O(buckets * runs^2).
    """
    falling, starts = np.unique(-lengths[positions], return_index=True)
    starts = np.append(starts, len(positions))
    sizes = np.append(-falling, 0)
    texts = starts[None, :] - starts[:, None]
    cost = np.where(texts >= 0, texts * sizes[:, None], np.iinfo(np.int64).max // 4)
    best, cuts = cost[0], []
    for _ in range(buckets - 1):
        through = best[:, None] + cost
        cuts.append(through.argmin(axis=0))
        best = through.min(axis=0)
    edges = [len(falling)]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edges.append(0)
    return [positions[starts[a] : starts[b]] for a, b in pairwise(reversed(edges))]


def padding_share(layout: StepLayout, lengths: NDArray[np.int64]) -> float:
    """Padded positions over all computed positions."""
    computed = used = 0
    for rank in layout.positions:
        for micro in rank:
            for bucket in micro:
                if len(bucket):
                    computed += len(bucket) * int(lengths[bucket].max())
                    used += int(lengths[bucket].sum())
    return 1 - used / computed if computed else 0.0
