"""Step layout: a step's texts -> rank x micro-batch x part. Pure numpy; it changes where, never what.

First the texts are dealt to ranks and micro-batches such that tokens balance (`balance`); then each micro-batch is cut
into *parts*: rectangles of texts of nearly the same length (`cut_into_buckets`), or rows that hold several texts end to
end (`fill_rows`). Every rank has the same number of micro-batches in every step of a run; where there is too little
work, some are empty.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmrecipes.planning.batch import BatchPlan

Positions = NDArray[np.int64]
Lengths = NDArray[np.int64]
LayoutName = Literal["padded", "buckets", "grouped", "packed"]

SWAPS = 64
"""Most exchanges between the fullest and the emptiest bin after the first deal."""
EVEN = 1.01
"""Fullest bin over the mean at which bins count as balanced."""


@dataclass(frozen=True)
class Arrangement:
    """How a micro-batch becomes parts.

    buckets: rectangles (buckets, grouped). width: most tokens of a row (packed), None for one row without end; least:
    rows are as wide as the micro-batch's longest text, but no narrower than this.
    """

    layout: LayoutName
    buckets: int = 1
    width: int | None = None
    least: int = 64

    def row(self, longest: int) -> int | None:
        """Tokens of the rows of a micro-batch whose longest text has so many."""
        return None if self.width is None else min(self.width, max(self.least, longest))

    def parts(self, positions: Positions, lengths: Lengths) -> list[Positions]:
        """Cut a micro-batch (positions by falling length). Empty parts are kept where each is a pass of the model of
        its own: there every rank must run equally many."""
        if self.layout == "packed":
            width = self.row(int(lengths[positions].max(initial=1)))
            return [positions] if width is None else fill_rows(positions, lengths, width)
        cut = cut_into_buckets(positions, lengths, 1 if self.layout == "padded" else self.buckets)
        return cut if self.layout in ("padded", "buckets") else [part for part in cut if len(part)]

    def computed(self, parts: list[Positions], lengths: Lengths) -> int:
        """Positions that the linear layers compute, padding included."""
        if self.layout == "packed":
            width = self.row(max((int(lengths[part].max(initial=1)) for part in parts), default=1))
            return sum(width or int(lengths[part].sum()) for part in parts)
        return sum(len(part) * int(lengths[part].max()) for part in parts if len(part))


@dataclass(frozen=True)
class StepLayout:
    """positions[rank][micro-batch][part]: indices into the step's examples; each occurs exactly once."""

    positions: list[list[list[Positions]]]


def lay_out(lengths: Lengths, plan: BatchPlan, arrangement: Arrangement) -> StepLayout:
    """The whole step's layout; lengths in tokens, [examples]."""
    return StepLayout([[arrangement.parts(micro, lengths) for micro in rank] for rank in deal(lengths, plan)])


def deal(lengths: Lengths, plan: BatchPlan) -> list[list[Positions]]:
    """[rank][micro-batch]: indices of texts by falling length; tokens balance over ranks and over micro-batches."""
    ranks = balance(lengths, plan.world_size, plan.accumulation * plan.micro_examples)
    return [[rank[part] for part in balance(lengths[rank], plan.accumulation, plan.micro_examples)] for rank in ranks]


def balance(lengths: Lengths, bins: int, most: int) -> list[Positions]:
    """Deal texts to bins of at most `most` texts such that their tokens balance; each bin by falling length.

    Longest text first to the bin with the fewest tokens (Graham 1969) that has room; then texts are exchanged between
    the fullest and the emptiest bin while that helps. Needs bins * most >= texts.
    """
    order = np.argsort(-lengths, kind="stable")
    if bins == 1:
        return [order]
    held: list[list[int]] = [[] for _ in range(bins)]
    open_bins = [(0, number) for number in range(bins)]
    sums = [0] * bins
    sizes = lengths[order].tolist()
    for place, size in enumerate(sizes):
        tokens, number = open_bins[0]
        held[number].append(place)
        sums[number] = tokens + size
        if len(held[number]) < most:
            heapq.heapreplace(open_bins, (sums[number], number))
        else:
            heapq.heappop(open_bins)
    _exchange(held, sums, sizes)
    return [order[bin_] for bin_ in held]


def _exchange(held: list[list[int]], sums: list[int], sizes: list[int]) -> None:
    """Swap one text of the fullest bin for a shorter one of the emptiest, the pair that levels the two best.

    held: places in the falling list `sizes`, rising in each bin; changed in place, and `sums` with it.
    """
    goal = EVEN * sum(sums) / len(sums)
    for _ in range(SWAPS):
        full, light = max(range(len(sums)), key=sums.__getitem__), min(range(len(sums)), key=sums.__getitem__)
        gap = sums[full] - sums[light]
        if sums[full] <= goal or gap < 2:
            return
        rising = held[light][::-1]
        rising_sizes = [sizes[place] for place in rising]
        best = (gap, 0, 0)
        for i, place in enumerate(held[full]):
            wanted = sizes[place] - gap / 2
            j = bisect_left(rising_sizes, wanted)
            for near in (j - 1, j):
                if 0 <= near < len(rising) and 0 < sizes[place] - rising_sizes[near] < gap:
                    best = min(best, (abs(gap - 2 * (sizes[place] - rising_sizes[near])), i, near))
        left, i, j = best
        if left >= gap:
            return
        given, taken = held[full][i], rising[j]
        held[full] = sorted([*held[full][:i], *held[full][i + 1 :], taken])
        held[light] = sorted([given, *(place for place in held[light] if place != taken)])
        sums[full] -= sizes[given] - sizes[taken]
        sums[light] += sizes[given] - sizes[taken]


def cut_into_buckets(positions: Positions, lengths: Lengths, buckets: int) -> list[Positions]:
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


def fill_rows(positions: Positions, lengths: Lengths, width: int) -> list[Positions]:
    """Fill rows of `width` tokens with texts sorted by falling length: each into the row with the least room that still
    takes it (best-fit decreasing: at most 11/9 of the fewest rows + 6/9, Johnson 1974). No text may exceed `width`."""
    rows: list[list[int]] = []
    by_room: list[tuple[int, int]] = []
    for position, size in zip(positions.tolist(), lengths[positions].tolist(), strict=True):
        at = bisect_left(by_room, (size, -1))
        room, row = by_room.pop(at) if at < len(by_room) else (width, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(position)
        entry = (room - size, row)
        by_room.insert(bisect_left(by_room, entry), entry)
    return [np.array(row, np.int64) for row in rows]


def padding_share(layout: StepLayout, lengths: Lengths, arrangement: Arrangement) -> float:
    """Padded positions over all computed positions."""
    micros = [micro for rank in layout.positions for micro in rank]
    computed = sum(arrangement.computed(parts, lengths) for parts in micros)
    used = sum(int(lengths[part].sum()) for parts in micros for part in parts)
    return 1 - used / computed if computed else 0.0
