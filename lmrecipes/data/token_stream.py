"""Interleaving by cost: shares of the *tokens* that hold exactly, whatever the lengths of the samples. Pure numpy.

Weighted fair queueing over sources whose samples differ in cost: with C the cost of all a source's samples before one
and l its own, the sample is due when the source's target reaches its middle, C + l / 2; samples come in the order in
which they are due. A source's target grows with a common virtual time at a rate that is its weight, so at every prefix
each source is within about one sample's cost of its share. Costs repeat with the epochs: the state at any index is
found by searching in cumulative costs, without going through the samples before it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.interleave import Stage
from lmrecipes.data.permutation import Array, Shuffle

Costs = Callable[[Array], Array]
"""Cost (tokens, int64 [k]) of rows [k]."""

CHUNK = 1 << 14
"""Samples of a source whose costs are read and summed up at once; of an epoch, one sum is kept for each chunk."""
BLOCK = 1 << 13
"""Samples that are ordered at once."""

Times = NDArray[np.float64]


class CostedSource:
    """One source: its endless shuffled order and what its samples cost. `total`: cost of all its rows.

    Samples are worked on in chunks of about CHUNK: parts of an epoch, or several epochs of a small source.
    """

    def __init__(self, shuffle: Shuffle, costs: Costs, total: int) -> None:
        self.shuffle, self.costs, self.total = shuffle, costs, total
        self.mean = total / shuffle.n
        epochs = max(1, CHUNK // shuffle.n)
        self._turn, self._turn_cost = epochs * shuffle.n, epochs * total  # samples after which chunks start anew
        self._before = lru_cache(maxsize=4)(self._sum_turn)
        self._chunk = lru_cache(maxsize=8)(self._middles_of_chunk)

    def middles(self, start: int, stop: int) -> Times:
        """Cost before the middle of each sample start..stop-1: float64, exact multiples of 1/2 up to 2**52."""
        parts = []
        while start < stop:
            turn, position = divmod(start, self._turn)
            chunk, first = divmod(position, CHUNK)
            middles = self._chunk(turn, chunk)[first : first + stop - start]
            parts.append(middles)
            start += len(middles)
        return np.concatenate(parts) if parts else np.empty(0)

    def reached(self, cost: float) -> int:
        """How many samples have their middle at or below `cost`."""
        if cost < 0:
            return 0
        turn = int(cost // self._turn_cost)
        before = self._before(turn)
        chunk = max(int(np.searchsorted(before, cost - turn * self._turn_cost, side="right")) - 1, 0)
        within = int(np.searchsorted(self._chunk(turn, chunk), cost, side="right"))
        return turn * self._turn + chunk * CHUNK + within

    def spent(self, count: int) -> float:
        """Cost of the first `count` samples, of which there is at least one."""
        last = self.costs(self.shuffle.rows(np.array([count - 1])))
        return float(self.middles(count - 1, count)[0]) + int(last[0]) / 2

    def _costs_of(self, turn: int, chunk: int) -> Array:
        first = turn * self._turn + chunk * CHUNK
        return self.costs(self.shuffle.rows(np.arange(first, min(first + CHUNK, (turn + 1) * self._turn))))

    def _sum_turn(self, turn: int) -> Array:
        """Cost of a turn's samples before each of its chunks."""
        chunks = -(-self._turn // CHUNK)
        sums = [int(self._costs_of(turn, chunk).sum()) for chunk in range(chunks - 1)]
        return np.cumsum([0, *sums], dtype=np.int64)

    def _middles_of_chunk(self, turn: int, chunk: int) -> Times:
        costs = self._costs_of(turn, chunk)
        before = turn * self._turn_cost + int(self._before(turn)[chunk]) + np.cumsum(costs) - costs
        return before.astype(np.float64) + costs / 2


@dataclass(frozen=True)
class _Compiled:
    """A stage: samples `counts` of each source came before it, when their targets were `targets` (cost units)."""

    number: int
    start: int
    length: float
    rates: tuple[float, ...]
    counts: tuple[int, ...]
    targets: tuple[float, ...]


class TokenStream:
    """The order of `stages` over sources, of which the i-th may be drawn `caps[i]` times in all (None: any number).

    A source that reaches its cap leaves; the others go on at their own rates. Where no source with a weight is left the
    order ends: `locate` gives -1 from there on, the other methods raise OverflowError(index of the end). The interface
    is that of `Interleave`.
    """

    def __init__(self, stages: Sequence[Stage], caps: Sequence[int | None], sources: Sequence[CostedSource]) -> None:
        self.stages, self.caps, self.sources = tuple(stages), tuple(caps), tuple(sources)
        self._limits = [math.inf if cap is None else cap for cap in self.caps]
        zeros = (0,) * len(self.sources)
        self._compiled = [self._compile(0, zeros, tuple(map(float, zeros)))]
        self._blocks: OrderedDict[tuple[int, int], tuple[Array, Array, list[int]]] = OrderedDict()

    def extended(self, stage: Stage) -> TokenStream:
        """The same order up to `stage.start`, then by that stage."""
        made = TokenStream([*self.stages, stage], self.caps, self.sources)
        made._compiled = [replace(old, length=made._length(old.number)) for old in self._compiled]
        last = made._compiled[-1]
        full = last.length // BLOCK  # blocks of the last stage that end before the new one starts
        made._blocks.update({key: b for key, b in self._blocks.items() if key[0] < last.number or key[1] < full})
        return made

    def counts(self, index: int) -> list[int]:
        """Samples of each source among the first `index`: [sources]."""
        return self._counts_in(self._stage_at(max(index - 1, 0)), index)

    def targets(self, index: int) -> list[float]:
        """Cost that each source's target has reached with the first `index` samples; it stops where a cap does."""
        stage = self._stage_at(max(index - 1, 0))
        now = self._time_before(stage, index)
        reached = [target + rate * now for target, rate in zip(stage.targets, stage.rates, strict=True)]
        return list(map(min, reached, self._ends))

    def weights_at(self, index: int) -> tuple[int, ...]:
        """Weights in force at an index; 0 for a source that is exhausted."""
        weights = next(stage.weights for stage in reversed(self.stages) if stage.start <= index)
        counts = self.counts(index)
        return tuple(0 if n >= limit else w for w, n, limit in zip(weights, counts, self._limits, strict=True))

    def exhausted_before(self, index: int) -> dict[int, int]:
        """Source -> index at which it reached its cap, of those that did before `index`."""
        ends, found = self.counts(index), {}
        for source, cap in enumerate(self.caps):
            if cap is not None and ends[source] >= cap:
                stage = next(stage for stage in reversed(self._compiled) if stage.counts[source] < cap)
                now = float(self._times(stage, source, cap - 1, cap)[0])
                counts = self._settle(stage, [self._reached(stage, i, now) for i in range(len(self.sources))])
                found[source] = stage.start + sum(counts) - sum(stage.counts)
        return found

    @cached_property
    def _ends(self) -> list[float]:
        """Cost of all that each source may give."""
        return [
            math.inf if cap is None else source.spent(cap) for source, cap in zip(self.sources, self.caps, strict=True)
        ]

    def locate(self, indices: Array) -> tuple[Array, Array]:
        """Source of each global index, and how many of its samples came before: ([k], [k]) int64."""
        sources, ranks = np.empty(len(indices), np.int64), np.empty(len(indices), np.int64)
        sources.fill(-1)
        if len(indices):
            low, high = int(indices.min()), int(indices.max())
            with suppress(OverflowError):
                self._stage_at(high)
            for stage in self._compiled:
                if stage.start > high or stage.start + stage.length <= low:
                    continue
                inside = (indices >= stage.start) & (indices < stage.start + stage.length)
                blocks = (indices - stage.start) // BLOCK
                for block in np.unique(blocks[inside]).tolist():
                    where = np.flatnonzero(inside & (blocks == block))
                    with suppress(OverflowError):
                        drawn, rank, _ = self._block(stage, block)
                        at = indices[where] - stage.start - block * BLOCK
                        where, at = where[at < len(drawn)], at[at < len(drawn)]
                        sources[where], ranks[where] = drawn[at], rank[at]
        return sources, ranks

    def samples(self, start: int, stop: int) -> Iterator[tuple[int, int, Array]]:
        """For each source drawn in start..stop-1: its number, the rank of its first sample there, and where its samples
        stand, counted from `start` ([k] int64, rising)."""
        drawn, ranks = self.locate(np.arange(start, stop))
        for source in np.unique(drawn[drawn >= 0]).tolist():
            places = np.flatnonzero(drawn == source)
            yield source, int(ranks[places[0]]), places

    def _compile(self, number: int, counts: tuple[int, ...], targets: tuple[float, ...]) -> _Compiled:
        stage = self.stages[number]
        rates = tuple(weight / sum(stage.weights) for weight in stage.weights)
        return _Compiled(number, stage.start, self._length(number), rates, counts, targets)

    def _length(self, number: int) -> float:
        """Samples of a stage; the last one never ends."""
        return self.stages[number + 1].start - self.stages[number].start if number + 1 < len(self.stages) else math.inf

    def _stage_at(self, index: int) -> _Compiled:
        while len(self._compiled) < len(self.stages) and self.stages[len(self._compiled)].start <= index:
            last = self._compiled[-1]
            start = self.stages[last.number + 1].start
            counts, now = self._counts_in(last, start), self._time_before(last, start)
            targets = tuple(target + rate * now for target, rate in zip(last.targets, last.rates, strict=True))
            self._compiled.append(self._compile(last.number + 1, tuple(counts), targets))
        return next(stage for stage in reversed(self._compiled) if stage.start <= index)

    def _counts_in(self, stage: _Compiled, index: int) -> list[int]:
        block, rest = divmod(index - stage.start, BLOCK)
        counts = self._starts(stage, block)
        if rest:
            drawn = self._block(stage, block)[0][:rest]
            if len(drawn) < rest:
                raise OverflowError(stage.start + block * BLOCK + len(drawn))
            counts = [n + int(np.count_nonzero(drawn == source)) for source, n in enumerate(counts)]
        return counts

    def _time_before(self, stage: _Compiled, index: int) -> float:
        """Virtual time, since the stage began, of the last sample before an index."""
        if index == stage.start:
            return 0.0
        counts = self._counts_in(stage, index)
        times = [self._times(stage, source, n - 1, n) for source, n in enumerate(counts) if n > stage.counts[source]]
        return max(float(time[0]) for time in times)

    def _times(self, stage: _Compiled, source: int, start: int, stop: int) -> Times:
        """Virtual time at which each sample start..stop-1 of a source is due."""
        return (self.sources[source].middles(start, stop) - stage.targets[source]) / stage.rates[source]

    def _block(self, stage: _Compiled, block: int) -> tuple[Array, Array, list[int]]:
        """Sources and ranks of a stage's next BLOCK samples (fewer at the end), and the counts after them."""
        key = (stage.number, block)
        if key not in self._blocks:
            wanted = int(min(BLOCK, stage.length - block * BLOCK))
            self._blocks[key] = self._merge(stage, self._starts(stage, block), wanted)
            while len(self._blocks) > 8:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(key)
        return self._blocks[key]

    def _starts(self, stage: _Compiled, block: int) -> list[int]:
        """Counts of each source before a block of a stage."""
        if block == 0:
            return list(stage.counts)
        if (stage.number, block - 1) in self._blocks:
            return self._blocks[stage.number, block - 1][2]
        return self._seek(stage, block * BLOCK)

    def _merge(self, stage: _Compiled, counts: Sequence[int], wanted: int) -> tuple[Array, Array, list[int]]:
        """The `wanted` samples that are due next after `counts`, by (time, source)."""
        active = [i for i, rate in enumerate(stage.rates) if rate and counts[i] < self._limits[i]]
        wanted = int(min(wanted, sum(self._limits[i] - counts[i] for i in active)))
        if not wanted:
            return np.empty(0, np.int64), np.empty(0, np.int64), list(counts)
        speed = {i: stage.rates[i] / self.sources[i].mean for i in active}
        ahead = {i: int(1.1 * wanted * speed[i] / sum(speed.values())) + 32 for i in active}
        while True:
            stops = {i: int(min(counts[i] + ahead[i], self._limits[i])) for i in active}
            times = {i: self._times(stage, i, counts[i], stops[i]) for i in active}
            # Beyond the last candidate of a source that has more, nothing is known: the order is complete up to there.
            known = min((times[i][-1] for i in active if stops[i] < self._limits[i]), default=math.inf)
            if sum(int(np.searchsorted(times[i], known)) for i in active) >= wanted:
                break
            for i in active:
                if times[i][-1] == known:  # it holds the others up
                    ahead[i] *= 2
        sources = np.concatenate([np.full(len(times[i]), i) for i in active])
        ranks = np.concatenate([np.arange(counts[i], stops[i]) for i in active])
        order = np.lexsort((sources, np.concatenate([times[i] for i in active])))[:wanted]
        drawn = sources[order]
        after = [n + int(np.count_nonzero(drawn == i)) for i, n in enumerate(counts)]
        return drawn, ranks[order], after

    def _seek(self, stage: _Compiled, wanted: int) -> list[int]:
        """Counts of each source after `wanted` samples of a stage, by searching the time at which that is so."""
        base = sum(stage.counts)
        most = sum(
            limit - n for limit, n, r in zip(self._limits, stage.counts, stage.rates, strict=True) if r and limit > n
        )
        if wanted > most:
            raise OverflowError(stage.start + int(most))
        rate = sum(
            r / source.mean for r, source in zip(stage.rates, self.sources, strict=True)
        )  # samples a unit of time
        low, high = 0.0, math.inf
        now = wanted / rate
        counts = list(stage.counts)
        for _ in range(200):
            reached = [self._reached(stage, i, now) for i in range(len(self.sources))]
            short = wanted - (sum(reached) - base)
            if 0 <= short <= BLOCK:
                counts = reached
                break
            low, high = (now, high) if short > 0 else (low, now)
            step = now + (short - BLOCK / 2) / rate
            now = step if low < step < high else (low + high) / 2 if high < math.inf else 2 * now + 1
        counts = self._settle(stage, counts)
        short = wanted - (sum(counts) - base)
        while short > 0:
            counts = self._merge(stage, counts, min(short, BLOCK))[2]
            short = wanted - (sum(counts) - base)
        return counts

    def _reached(self, stage: _Compiled, source: int, now: float) -> int:
        if not stage.rates[source]:
            return stage.counts[source]
        due = self.sources[source].reached(stage.targets[source] + stage.rates[source] * now)
        return int(min(max(due, stage.counts[source]), self._limits[source]))

    def _settle(self, stage: _Compiled, counts: list[int]) -> list[int]:
        """The counts cut back until no sample in them is due after one outside: rounding may have let one slip."""
        active = [i for i, rate in enumerate(stage.rates) if rate]
        while True:
            inside = [
                (float(self._times(stage, i, counts[i] - 1, counts[i])[0]), i)
                for i in active
                if counts[i] > stage.counts[i]
            ]
            outside = [
                (float(self._times(stage, i, counts[i], counts[i] + 1)[0]), i)
                for i in active
                if counts[i] < self._limits[i]
            ]
            if not inside or not outside or max(inside) < min(outside):
                return counts
            counts = [n - (i == max(inside)[1]) for i, n in enumerate(counts)]
