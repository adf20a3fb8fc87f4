"""The mixture: global sample index k -> (task, row), a pure function of the recipe, the seed and k. Pure numpy.

Tasks are interleaved by a Huffman tree over integer weights: at a node with weights (a, b), the first m samples send
floor(m a / (a + b) + 1/2) to the left. That is monotone in m, so any prefix count is known in closed form and any index
can be sought directly; no task's count is ever more than 2 from its share of the prefix. Rows of a task are shuffled
anew in every epoch by a stateless permutation. Nothing is stored between calls: the cursor of a run is one integer.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.permutation import Array, hash_key, permute
from lmrecipes.recipe import Recipe

RESOLUTION = 2**30
"""Weights become integers that sum to about this: shares are exact to 1e-9, products of two fit in 63 bits."""


def example_weights(weights: dict[str, float], rows: dict[str, int], temperature: float | None) -> dict[str, float]:
    """Shares of the examples, summing to 1. With a temperature T each weight is multiplied by rows ** (1 / T)."""
    raw = {task: w * (rows[task] ** (1 / temperature) if temperature else 1.0) for task, w in weights.items()}
    total = sum(raw.values())
    return {task: value / total for task, value in raw.items()}


def _integers(shares: list[float]) -> list[int]:
    """Integer weights for shares: exact where a small common denominator exists, else at a fixed resolution."""
    exact = [Fraction(share).limit_denominator(10_000) for share in shares]
    if all(f > 0 and abs(float(f) - share) < 1e-12 for f, share in zip(exact, shares, strict=True)):
        scale = math.lcm(*(f.denominator for f in exact))
        if scale <= RESOLUTION:
            return [int(f * scale) for f in exact]
    return [max(1, round(share * RESOLUTION)) for share in shares]


@dataclass(frozen=True)
class _Node:
    weight: int
    left: int | _Node
    right: int | _Node
    left_weight: int


def _tree(weights: list[int]) -> int | _Node:
    heap: list[tuple[int, int, int | _Node]] = [(w, i, i) for i, w in enumerate(weights)]
    heapq.heapify(heap)
    order = len(weights)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (a + b, order, _Node(a + b, left, right, a)))
        order += 1
    return heap[0][2]


def _to_the_left(m: Array, node: _Node) -> Array:
    """floor(m a / w + 1/2) in exact integers, for m up to 2**62: with m = q w + r, every product is below 2 w**2."""
    q, r = np.divmod(m, node.weight)
    return q * node.left_weight + (2 * r * node.left_weight + node.weight) // (2 * node.weight)


@dataclass(frozen=True)
class Mixture:
    """The global stream over `tasks`, with `rows` rows each and `shares` of the examples (all [tasks])."""

    tasks: tuple[str, ...]
    rows: tuple[int, ...]
    shares: tuple[float, ...]
    seed: int
    _root: int | _Node = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_root", _tree(_integers(list(self.shares))))

    def at(self, indices: Array) -> tuple[NDArray[np.int16], Array]:
        """Task number and row of each global index: ([k] int16, [k] int64)."""
        tasks = np.empty(len(indices), np.int16)
        ranks = np.empty(len(indices), np.int64)
        self._descend(self._root, np.asarray(indices, np.int64), np.arange(len(indices)), tasks, ranks)
        rows = np.empty(len(indices), np.int64)
        for task in range(len(self.tasks)):
            chosen = np.flatnonzero(tasks == task)
            if len(chosen):
                rows[chosen] = self._shuffled(task, ranks[chosen])
        return tasks, rows

    def counts(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` are of each task."""
        found: dict[str, int] = {}

        def descend(node: int | _Node, m: int) -> None:
            if isinstance(node, int):
                found[self.tasks[node]] = m
                return
            left = int(_to_the_left(np.array([m]), node)[0])
            descend(node.left, left)
            descend(node.right, m - left)

        descend(self._root, samples)
        return {task: found[task] for task in self.tasks}

    def _descend(self, node: int | _Node, m: Array, where: Array, tasks: NDArray[np.int16], ranks: Array) -> None:
        if isinstance(node, int):
            tasks[where], ranks[where] = node, m
            return
        before = _to_the_left(m, node)
        goes_left = _to_the_left(m + 1, node) > before
        goes_right = ~goes_left
        self._descend(node.left, before[goes_left], where[goes_left], tasks, ranks)
        self._descend(node.right, (m - before)[goes_right], where[goes_right], tasks, ranks)

    def _shuffled(self, task: int, ranks: Array) -> Array:
        """Row of the ranks-th sample of a task: every row once per epoch, in an order of its own for each epoch."""
        n = self.rows[task]
        epochs, positions = np.divmod(ranks, n)
        distinct, inverse = np.unique(epochs, return_inverse=True)
        keys = np.array([hash_key(self.seed, "shuffle", self.tasks[task], int(e)) for e in distinct], np.uint64)
        return permute(positions, n, keys[inverse])


def build_mixture(recipe: Recipe, rows: dict[str, int]) -> Mixture:
    """The stream of a recipe over tasks with so many training rows."""
    weights = {name: task.weight for name, task in recipe.tasks.items()}
    shares = example_weights(weights, rows, recipe.mixture.temperature)
    return Mixture(tuple(rows), tuple(rows.values()), tuple(shares.values()), recipe.seed)
