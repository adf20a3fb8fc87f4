"""The mixture: global sample index k -> (task, row), a pure function of the recipe, the seed and k. Pure numpy.

Three functions of k alone, one after the other: which sample of the interleaved order stands in slot k (the slots of
a step are permuted, so that no rank and no place in a batch sees a pattern); whose turn that sample is and how many of
the task's samples came before (`Interleave` by counts, `TokenStream` by tokens); and which row that is (`Shuffle`, a
new order in every epoch). Nothing but caches is stored between calls: the cursor of a run is one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from threading import RLock

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.interleave import Interleave, Stage, integer_weights
from lmrecipes.data.permutation import Array, Shuffle, hash_key, numbered_keys
from lmrecipes.data.token_stream import CostedSource, Costs, TokenStream

BLOCK = 1 << 12
"""Samples that are made, and kept, for a call that asks for a few; times the tasks over 8 where there are more."""
MOST = 1 << 17
"""Samples made at once for a call that asks for many (times the tasks over 12): each task's part stays in a core's
cache."""
_WINDOW_BITS = 24

Tasks = NDArray[np.int16]


@dataclass(frozen=True)
class Supply:
    """What a task can give: its training rows, how often they may be drawn in all, and what they count.

    total: size of all rows in the mixture's unit. costs: size of rows, [k] -> int64 [k]; None where each counts 1.
    """

    rows: int
    total: int
    cap: int | None = None
    costs: Costs | None = None


class Mixture:
    """The global stream over `tasks`. Samples from a stage's start on are drawn by its weights, in the mixture's unit.

    window: samples whose slots are permuted among themselves, those of a step. seed: of slots and of the rows' order.
    Where no task with a weight is left the stream ends: every method raises OverflowError(index) for what lies beyond.
    """

    def __init__(
        self, tasks: Sequence[str], supplies: Sequence[Supply], plan: Sequence[Stage], seed: int, window: int = 1
    ) -> None:
        self.tasks, self.supplies, self.plan = tuple(tasks), tuple(supplies), tuple(plan)
        self.seed, self.window = seed, window
        self.shuffles = [Shuffle(s.rows, hash_key(seed, "shuffle", t)) for t, s in zip(tasks, supplies, strict=True)]
        caps = [supply.cap for supply in supplies]
        costed = [
            CostedSource(shuffle, supply.costs, supply.total)
            for shuffle, supply in zip(self.shuffles, self.supplies, strict=True)
            if supply.costs is not None
        ]
        self.order: Interleave | TokenStream = (
            TokenStream(self.plan, caps, costed) if costed else Interleave(self.plan, caps)
        )
        self._slot_key = np.uint64(hash_key(seed, "slots"))
        size = -(-BLOCK * max(1, len(self.tasks) // 8) // window)
        self._block_size = size * window
        self._remember()

    @classmethod
    def fixed(
        cls, tasks: Sequence[str], rows: Sequence[int], shares: Sequence[float], seed: int, window: int = 1
    ) -> Mixture:
        """A stream whose shares, of the examples, never change."""
        supplies = [Supply(count, count) for count in rows]
        return cls(tasks, supplies, [Stage(0, integer_weights(shares))], seed, window)

    @property
    def rows(self) -> tuple[int, ...]:
        """Training rows of each task."""
        return tuple(supply.rows for supply in self.supplies)

    def with_stage(self, start: int, weights: Sequence[int]) -> Mixture:
        """The same samples before `start`, from there on by other integer weights. Raises ValueError for a start that
        does not come after the last stage's or lies within a window."""
        if start <= self.plan[-1].start or start % self.window:
            raise ValueError(f"a stage at {start} after one at {self.plan[-1].start}, in windows of {self.window}")
        made = copy(self)
        stage = Stage(start, tuple(weights))
        with self._lock:
            made.plan, made.order = (*self.plan, stage), self.order.extended(stage)
        made._remember()
        return made

    def at(self, indices: Array) -> tuple[Tasks, Array]:
        """Task number and row of each global index: ([k] int16, [k] int64)."""
        indices = np.asarray(indices, np.int64)
        if not len(indices):
            return np.empty(0, np.int16), np.empty(0, np.int64)
        low, high = int(indices.min()), int(indices.max()) + 1
        with self._lock:
            near = high - low <= 2 * max(len(indices), self._block_size)
            tasks, rows = self._near(indices, low, high) if near else self._scattered(indices)
        if int(tasks.min()) < 0:
            raise OverflowError(int(indices[tasks < 0].min()))
        return tasks, rows

    def counts(self, index: int) -> dict[str, int]:
        """How many of the first `index` samples are of each task (index: a multiple of the window)."""
        with self._lock:
            return dict(zip(self.tasks, self.order.counts(index), strict=True))

    def targets(self, index: int) -> dict[str, float]:
        """What the weights ask of each task among the first `index` samples, in the mixture's unit."""
        with self._lock:
            return dict(zip(self.tasks, self.order.targets(index), strict=True))

    def shares_at(self, index: int) -> dict[str, float]:
        """Shares, in the mixture's unit, by which the sample at an index is drawn; 0 for exhausted tasks."""
        with self._lock:
            weights = self.order.weights_at(index)
        return {task: weight / sum(weights) for task, weight in zip(self.tasks, weights, strict=True)}

    def exhausted_before(self, index: int) -> dict[str, int]:
        """Task -> index from which on it gives nothing more, of those that reach their cap before `index`."""
        with self._lock:
            return {self.tasks[task]: at for task, at in self.order.exhausted_before(index).items()}

    def _remember(self) -> None:
        """Start with empty caches; they are this object's own."""
        self._lock = RLock()  # several threads make batches
        self._block = lru_cache(maxsize=4)(self._make_block)

    def _near(self, indices: Array, low: int, high: int) -> tuple[Tasks, Array]:
        """Indices that lie close together: whole stretches are made, and for a few indices kept."""
        size = self._block_size
        if high - low <= size:
            first = low // size
            parts = [self._block(block) for block in range(first, (high - 1) // size + 1)]
            origin = first * size
        else:
            piece = max(MOST * max(1, len(self.tasks) // 12) // self.window, 1) * self.window
            origin = low // self.window * self.window
            end = -(-high // self.window) * self.window
            parts = [self._make(start, min(start + piece, end)) for start in range(origin, end, piece)]
        tasks, rows = (np.concatenate(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
        if len(indices) == high - low and bool((indices[1:] > indices[:-1]).all()):
            stretch = slice(low - origin, high - origin)
            return tasks[stretch].copy(), rows[stretch].copy()  # not a view of a block that is kept
        return tasks[indices - origin], rows[indices - origin]

    def _scattered(self, indices: Array) -> tuple[Tasks, Array]:
        """Indices that lie far apart: each is sought."""
        tasks, ranks = self.order.locate(self._slots(indices))
        rows = np.empty(len(indices), np.int64)
        for task in np.unique(tasks[tasks >= 0]).tolist():
            chosen = np.flatnonzero(tasks == task)
            rows[chosen] = self.shuffles[task].rows(ranks[chosen])
        return tasks.astype(np.int16), rows

    def _make_block(self, block: int) -> tuple[Tasks, Array]:
        return self._make(block * self._block_size, (block + 1) * self._block_size)

    def _make(self, start: int, stop: int) -> tuple[Tasks, Array]:
        """Tasks (-1 beyond the end) and rows of all samples start..stop-1, both multiples of the window."""
        tasks, rows = np.full(stop - start, -1, np.int16), np.empty(stop - start, np.int64)
        for task, first, places in self.order.samples(start, stop):
            tasks[places] = task
            rows[places] = self.shuffles[task].rows(np.arange(first, first + len(places)))
        if self.window > 1:
            slots = self._permuted(np.arange(start // self.window, stop // self.window)).ravel()
            tasks, rows = tasks[slots - start], rows[slots - start]
        return tasks, rows

    def _slots(self, indices: Array) -> Array:
        """The place in the interleaved order of the sample that stands at each index."""
        if self.window == 1:
            return indices
        windows, inverse = np.unique(indices // self.window, return_inverse=True)
        return self._permuted(windows)[inverse, indices % self.window]

    def _permuted(self, windows: Array) -> Array:
        """The places of each window in the order of their hashes: [windows, window]."""
        places = windows[:, None] * self.window + np.arange(self.window)
        hashes = numbered_keys(self._slot_key, places) >> np.uint64(_WINDOW_BITS) << np.uint64(_WINDOW_BITS)
        # The place itself in the lowest bits: all are different, so that every way to sort gives the same order.
        hashes |= np.arange(self.window, dtype=np.uint64)
        hashes.sort(axis=1)
        hashes &= np.uint64((1 << _WINDOW_BITS) - 1)
        return windows[:, None] * self.window + hashes.astype(np.int64)
