"""Whose turn it is: the interleaving of K sources by exact weights, for any prefix in closed form. Pure numpy.

Sources are the leaves of a binary tree (`trees`). Of the first m samples that reach a node with weights (a, b), the
left child gets floor((m a + c) / (a + b)): monotone in m, exact integers, so that any prefix count is known and any
index can be sought. With c = (a + b) / 2 that is rounding, and no source is further from its share of any prefix than
the tree's error bound: 1.68 for any number of sources, near 1 or below for fewer than ten.

Weights change at the starts of stages. A stage's constants c carry over by how much each source is behind its target,
so that errors do not add up over any number of stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from lmrecipes.data.permutation import Array
from lmrecipes.data.trees import Tree, best_tree

RESOLUTION = 1 << 42
"""Weights sum to about this at most: what their rounding adds up to stays below a sample in the first 1e12."""
SPAN = 1 << 20
"""Indices that are computed in one go differ by less than this: products with a weight fit in 63 bits."""
_LAG = 32
"""Lags are kept in units of 2 ** -32 samples."""


@dataclass(frozen=True)
class Stage:
    """From global sample index `start` on, sources are drawn by these integer weights (0: not at all)."""

    start: int
    weights: tuple[int, ...]


def integer_weights(shares: Sequence[float]) -> tuple[int, ...]:
    """Integers in proportion to the shares: exact where the shares have a small common denominator, else to 2**-43."""
    total = math.fsum(shares)
    scaled = [share / total for share in shares]
    for denominator in _SMALL:
        near = [round(share * denominator) for share in scaled]
        if sum(near) == denominator and all(
            abs(n - share * denominator) < 1e-9 and (n > 0) == (share > 0)
            for n, share in zip(near, scaled, strict=True)
        ):
            divisor = math.gcd(*near)
            return tuple(n // divisor for n in near)
    return tuple(max(1, round(share * RESOLUTION)) if share > 0 else 0 for share in scaled)


_SMALL = [*range(1, 101), 120, 128, 144, 150, 200, 250, 256, 300, 360, 400, 500, 512, 1000, 1024, 10_000]


@dataclass(frozen=True)
class _Node:
    """left(m) = floor((m left_weight + shift) / weight), kept within 0 and m."""

    weight: int
    left_weight: int
    shift: int
    left: int | _Node
    right: int | _Node

    def to_the_left(self, m: int) -> int:
        """Of the first m samples here, those that go to the left."""
        return min(max((m * self.left_weight + self.shift) // self.weight, 0), m)


Climb = tuple[int, int, int]
"""(weight, shift, divisor): sample j of a child is sample floor((j weight + shift) / divisor) of its node."""


@dataclass(frozen=True)
class _Compiled:
    """A stage ready to be asked: `counts` of each source before it, `lag` (2**-32 samples) behind its target."""

    start: int
    weights: tuple[int, ...]
    counts: tuple[int, ...]
    lag: tuple[int, ...]
    tree: Tree
    root: int | _Node

    @property
    def total(self) -> int:
        return sum(self.weights)

    def climbs(self) -> Iterator[tuple[int, list[Climb]]]:
        """Each source that is drawn, with the way from its leaf to the root.

        The left child gets its sample j with the node's first m such that (m + 1) left_weight + shift reaches
        (j + 1) weight; the right child, whose count is m less that of the left, with the first m such that
        m right_weight exceeds j weight + shift.
        """

        def descend(node: int | _Node, way: list[Climb]) -> Iterator[tuple[int, list[Climb]]]:
            if isinstance(node, int):
                yield node, way
                return
            weight, left, shift = node.weight, node.left_weight, node.shift
            yield from descend(node.left, [(weight, weight - shift - 1, left), *way])
            yield from descend(node.right, [(weight, shift, weight - left), *way])

        return descend(self.root, [])

    def count(self, index: int) -> list[int]:
        """Samples of each source among the first `index`."""
        counts = list(self.counts)

        def descend(node: int | _Node, m: int) -> None:
            if isinstance(node, int):
                counts[node] += m
                return
            left = node.to_the_left(m)
            descend(node.left, left)
            descend(node.right, m - left)

        descend(self.root, index - self.start)
        return counts

    def lag_at(self, index: int, counts: Sequence[int]) -> list[int]:
        """How far each source, with these counts, is behind its target at an index."""
        drawn, total = index - self.start, self.total
        due = [(w * drawn << _LAG) // total for w in self.weights]
        return [
            lag + goal - ((now - before) << _LAG)
            for lag, goal, now, before in zip(self.lag, due, counts, self.counts, strict=True)
        ]


class Interleave:
    """The order of `stages` over sources of which the i-th may be drawn `caps[i]` times in all (None: any number).

    A source that reaches its cap gives its weight to the others, in proportion to theirs. Where no source with a weight
    is left the order ends: `locate` gives -1 from there on, the other methods raise OverflowError(index of the end).
    """

    def __init__(self, stages: Sequence[Stage], caps: Sequence[int | None]) -> None:
        self.stages, self.caps = tuple(stages), tuple(caps)
        sources = len(self.caps)
        self._compiled: list[_Compiled] = []
        self._compiled.append(self._compile(0, self.stages[0].weights, (0,) * sources, (0,) * sources))
        self._known = self._end_of_last()

    def extended(self, stage: Stage) -> Interleave:
        """The same order up to `stage.start`, then by that stage."""
        self._stage_at(stage.start - 1)
        made = copy(self)
        made.stages = (*self.stages, stage)
        made._compiled = [old for old in self._compiled if old.start < stage.start]
        made._known = made._end_of_last()
        return made

    def counts(self, index: int) -> list[int]:
        """Samples of each source among the first `index`: [sources]."""
        return self._stage_at(max(index - 1, 0)).count(index)

    def targets(self, index: int) -> list[float]:
        """What the weights ask for among the first `index`; an exhausted source's target stays where it was."""
        stage = self._stage_at(max(index - 1, 0))
        counts = stage.count(index)
        lags = stage.lag_at(index, counts)
        return [count + lag / 2.0**_LAG for count, lag in zip(counts, lags, strict=True)]

    def weights_at(self, index: int) -> tuple[int, ...]:
        """Weights in force at an index; 0 for a source that is exhausted."""
        return self._stage_at(index).weights

    def exhausted_before(self, index: int) -> dict[int, int]:
        """Source -> index at which it reached its cap, of those that did before `index`."""
        self._stage_at(max(index - 1, 0))
        found: dict[int, int] = {}
        for stage in self._compiled:
            for source, cap in enumerate(self.caps):
                if cap is not None and stage.counts[source] == cap and stage.start <= index:
                    found.setdefault(source, stage.start)
        return found

    def locate(self, indices: Array) -> tuple[Array, Array]:
        """Source of each global index, and how many of its samples came before: ([k], [k]) int64."""
        sources, ranks = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        sources.fill(-1)
        if len(indices):
            low, high = int(indices.min()), self._reachable(int(indices.max()) + 1) - 1
            for number, stage in enumerate(self._compiled):
                end = self._compiled[number + 1].start if number + 1 < len(self._compiled) else math.inf
                if stage.start <= high and end > low:
                    inside = stage.start <= low and int(indices.max()) <= high < end
                    where = np.arange(len(indices)) if inside else _between(indices, stage.start, min(end, high + 1))
                    self._locate(stage, indices if inside else indices[where], where, sources, ranks)
        return sources, ranks

    def samples(self, start: int, stop: int) -> Iterator[tuple[int, int, Array]]:
        """Stretches of one source in start..stop-1: its number, the rank of its first sample there, and where its
        samples stand, counted from `start` ([k] int64, rising). What `locate` says of the same indices, only faster."""
        stop = self._reachable(stop)
        for number, stage in enumerate(self._compiled):
            end = self._compiled[number + 1].start if number + 1 < len(self._compiled) else stop
            for low in range(max(start, stage.start), min(stop, end), SPAN // 2):
                before, after = stage.count(low), stage.count(min(stop, end, low + SPAN // 2))
                for source, way in stage.climbs():
                    if after[source] > before[source]:
                        first = before[source] - stage.counts[source]
                        places = _climb(first, after[source] - before[source], way)
                        yield source, before[source], places + (stage.start - start)

    def _locate(self, stage: _Compiled, indices: Array, where: Array, sources: Array, ranks: Array) -> None:
        if not len(indices):
            return
        spans = (indices - stage.start) // SPAN
        if spans[0] == spans[-1] and (spans == spans[0]).all():
            groups = [np.arange(len(indices))]
        else:
            by_span = np.argsort(spans, kind="stable")
            groups = np.split(by_span, np.flatnonzero(np.diff(spans[by_span])) + 1)
        for group in groups:
            near = indices[group]
            base = int(near.min())
            self._descend(stage, stage.root, base - stage.start, near - base, where[group], sources, ranks)

    def _descend(
        self, stage: _Compiled, node: int | _Node, base: int, offsets: Array, where: Array, sources: Array, ranks: Array
    ) -> None:
        """Place the samples base + offsets of those that reach a node; offsets below SPAN."""
        if not len(offsets):
            return
        if isinstance(node, int):
            sources[where] = node
            ranks[where] = offsets + (stage.counts[node] + base)
            return
        quotient, remainder = divmod(base * node.left_weight + node.shift, node.weight)
        left_base = node.to_the_left(base)
        scaled = offsets * node.left_weight
        scaled += remainder
        before = scaled // node.weight
        scaled -= before * node.weight
        goes_left = scaled >= node.weight - node.left_weight
        if not 0 <= node.shift < node.weight:  # only then can the formula leave 0..m
            after = before + goes_left
            m = offsets + base
            before = np.clip(before + quotient, 0, m) - left_base
            goes_left = np.clip(after + quotient, 0, m + 1) - left_base > before
        chosen, others = np.flatnonzero(goes_left), np.flatnonzero(~goes_left)
        lefts = before[chosen]
        rights = offsets[others] - before[others]
        self._descend(stage, node.left, left_base, lefts, where[chosen], sources, ranks)
        self._descend(stage, node.right, base - left_base, rights, where[others], sources, ranks)

    def _reachable(self, stop: int) -> int:
        """`stop`, or the end of the order where that comes before. Compiles the stages up to there."""
        try:
            self._stage_at(max(stop - 1, 0))
        except OverflowError as end:
            return int(end.args[0])
        return stop

    def _stage_at(self, index: int) -> _Compiled:
        """The compiled stage that an index belongs to; compiles as far as needed."""
        while self._known is not None and self._known[0] <= index:
            start, weights = self._known
            last = self._compiled[-1]
            counts = last.count(start)
            self._compiled.append(self._compile(start, weights, counts, last.lag_at(start, counts)))
            self._known = self._end_of_last()
        low, high = 0, len(self._compiled)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._compiled[middle].start <= index else (low, middle)
        return self._compiled[low]

    def _compile(self, start: int, weights: Sequence[int], counts: Sequence[int], lag: Sequence[int]) -> _Compiled:
        left = [
            0 if cap is not None and count >= cap else weight
            for weight, count, cap in zip(weights, counts, self.caps, strict=True)
        ]
        active = [source for source, weight in enumerate(left) if weight]
        if not active:
            raise OverflowError(start)
        total = sum(left)
        behind = sum(lag[source] for source in active)  # not 0 where the others hold a lag that they cannot make up
        shifted = {source: lag[source] - behind * left[source] // total for source in active}
        former = self._compiled[-1] if self._compiled else None
        same = former is not None and active == [source for source, weight in enumerate(former.weights) if weight]
        tree = best_tree(tuple(left[source] for source in active), former.tree if former and same else None)

        def build(node: Tree, lag_here: int) -> int | _Node:
            if isinstance(node, int):
                return active[node]
            weight, left_weight = _leaf_sum(node, left, active), _leaf_sum(node[0], left, active)
            left_lag = _leaf_sum(node[0], shifted, active)
            shift = (weight * left_lag - left_weight * lag_here + (weight << (_LAG - 1))) >> _LAG
            return _Node(weight, left_weight, shift, build(node[0], left_lag), build(node[1], lag_here - left_lag))

        return _Compiled(start, tuple(left), tuple(counts), tuple(lag), tree, build(tree, 0))

    def _end_of_last(self) -> tuple[int, tuple[int, ...]] | None:
        """Start and weights of what follows the last compiled stage: a declared stage, or what exhaustion leaves."""
        last = self._compiled[-1]
        declared = next((stage for stage in self.stages if stage.start > last.start), None)
        ends = [self._exhaustion(last, source) for source, weight in enumerate(last.weights) if weight]
        first = min((end for end in ends if end is not None), default=None)
        if first is not None and (declared is None or first < declared.start):
            current = next(stage for stage in reversed(self.stages) if stage.start <= last.start)
            return first, current.weights
        return (declared.start, declared.weights) if declared is not None else None

    def _exhaustion(self, stage: _Compiled, source: int) -> int | None:
        """The smallest index at which a source has reached its cap, if its stage went on for ever."""
        cap = self.caps[source]
        if cap is None:
            return None
        low = stage.start
        reach = (cap - stage.counts[source] + 8) * stage.total // stage.weights[source] + 8
        high = stage.start + reach
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if stage.count(middle)[source] >= cap else (middle, high)
        return high


def _climb(first: int, count: int, way: Sequence[Climb]) -> Array:
    """Where samples first..first+count-1 of a leaf stand among those of the root. Bases are Python's integers."""
    base, offsets = first, np.arange(count, dtype=np.int64)
    for weight, shift, divisor in way:
        quotient, remainder = divmod(base * weight + shift, divisor)
        late = quotient - base  # where a node is catching up, all its samples go to one child: m is never below j
        moved = (offsets * weight + remainder) // divisor
        if late < 0 or not 0 <= shift < weight:
            np.maximum(moved, offsets - late, out=moved)
        base, offsets = quotient, moved
    return offsets + base


def _leaf_sum(tree: Tree, values: Sequence[int] | dict[int, int], active: Sequence[int]) -> int:
    if isinstance(tree, int):
        return values[active[tree]]
    return _leaf_sum(tree[0], values, active) + _leaf_sum(tree[1], values, active)


def _between(indices: Array, start: int, end: float) -> Array:
    return np.flatnonzero((indices >= start) & (indices < end))
