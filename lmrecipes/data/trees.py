"""Trees over weighted sources whose rounding errors stay small. Pure Python.

Where each node of a binary tree divides what reaches it between its children by rounding, a source's count is never
further from its share than half the sum of its weight over theirs, along the nodes from its leaf to below the root.
Huffman's tree keeps that below 1.68 for any number of sources (its worst case are weights like Fibonacci's numbers:
half the sum of their reciprocals). For fewer than ten sources the best of all trees is searched, and comes to 1 or just
above.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import lru_cache

Tree = int | tuple["Tree", "Tree"]
"""A source's number, or two trees."""

MOST_SEARCHED = 9
"""Sources up to which the best tree is searched: 3 ** 9 / 2 divisions of subsets take about 10 ms."""


@lru_cache(maxsize=4096)
def best_tree(weights: tuple[int, ...], former: Tree | None = None) -> Tree:
    """The tree to divide by, over the numbers of `weights` (all above 0). former: one that is kept where it will do."""
    if former is not None and error_bound(former, weights) <= 1:
        return former
    tree = _huffman(weights)
    if len(weights) > MOST_SEARCHED or error_bound(tree, weights) <= 1:
        return tree
    low, high = 0.5, error_bound(tree, weights)
    target = 1.0  # most sets of weights have a tree of at most 1: try that first, and stop there
    for _ in range(4):
        found = _tree_within(weights, target)
        if found is not None:
            tree, high = found, error_bound(found, weights)
            if high <= 1:
                break
        else:
            low = target
        target = (low + high) / 2
    return tree


def error_bound(tree: Tree, weights: Sequence[int]) -> float:
    """The most that a source's count can differ from its share of a prefix, under constant weights."""

    def worst(node: Tree, above: float) -> tuple[int, float]:
        """Weight of the node and the bound over its leaves; above: sum of 1 / weight over the nodes above it."""
        if isinstance(node, int):
            return weights[node], 0.5 * (weights[node] * above + 1)
        total = _weight(node, weights)
        return total, max(worst(child, above + 1 / total)[1] for child in node)

    return 0.0 if isinstance(tree, int) else max(worst(child, 0.0)[1] for child in tree)


def _weight(tree: Tree, weights: Sequence[int]) -> int:
    return weights[tree] if isinstance(tree, int) else _weight(tree[0], weights) + _weight(tree[1], weights)


def _huffman(weights: Sequence[int]) -> Tree:
    heap: list[tuple[int, int, Tree]] = [(w, i, i) for i, w in enumerate(weights)]
    heapq.heapify(heap)
    order = len(weights)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        heapq.heappush(heap, (a + b, order, (left, right)))
        order += 1
    return heap[0][2]


def _tree_within(weights: Sequence[int], bound: float) -> Tree | None:
    """A tree whose error bound is at most `bound`, or None.

    A leaf allows 2 bound / weight as the sum of 1 / weight over its own and the nodes above; what a subset allows above
    it is the least that its leaves leave. Dynamic programme over all divisions of all subsets, which are bit masks.
    """
    count = len(weights)
    total = [0] * (1 << count)
    allows = [0.0] * (1 << count)
    division = [0] * (1 << count)
    for subset in range(1, 1 << count):
        lowest = subset & -subset
        total[subset] = total[subset ^ lowest] + weights[lowest.bit_length() - 1]
        if subset == lowest:
            allows[subset] = 2 * bound / total[subset] - 1 / total[subset]
            continue
        best, chosen = -math.inf, 0
        part = rest = subset ^ lowest
        while part:  # every subset that lacks the lowest source, against its complement, which has it
            leaves = min(allows[part], allows[subset ^ part])
            if leaves > best:
                best, chosen = leaves, part
            part = (part - 1) & rest
        division[subset] = chosen
        allows[subset] = best if subset == (1 << count) - 1 else best - 1 / total[subset]
    whole = (1 << count) - 1
    if allows[whole] < -1e-15:
        return None

    def build(subset: int) -> Tree:
        if not division[subset]:
            return subset.bit_length() - 1
        return build(division[subset]), build(subset ^ division[subset])

    return build(whole)
