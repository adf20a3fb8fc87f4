"""Trees of small rounding errors: what the bound says is what rounding gives."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.data.trees import Tree, best_tree, error_bound

whole = st.integers(1, 2**20)


def leaves(tree: Tree) -> list[int]:
    return [tree] if isinstance(tree, int) else leaves(tree[0]) + leaves(tree[1])


@settings(deadline=None)
@given(weights=st.lists(whole, min_size=1, max_size=40))
def test_every_source_is_a_leaf_and_the_bound_of_huffman_holds(weights: list[int]) -> None:
    tree = best_tree(tuple(weights))
    assert sorted(leaves(tree)) == list(range(len(weights)))
    assert error_bound(tree, weights) < 1.68


@settings(deadline=None, max_examples=40)
@given(weights=st.lists(whole, min_size=2, max_size=8))
def test_few_sources_stay_near_one(weights: list[int]) -> None:
    assert error_bound(best_tree(tuple(weights)), weights) <= 1.1


def every_tree(sources: tuple[int, ...]) -> list[Tree]:
    if len(sources) == 1:
        return [sources[0]]
    found: list[Tree] = []
    for mask in range(1, 2 ** len(sources) - 1, 2):  # the first source is always on the left
        left = tuple(s for i, s in enumerate(sources) if mask >> i & 1)
        right = tuple(s for i, s in enumerate(sources) if not mask >> i & 1)
        found += [(a, b) for a in every_tree(left) for b in every_tree(right)]
    return found


@pytest.mark.parametrize("weights", [(50, 49, 1), (34, 33, 32, 1), (1000, 1, 999, 1001, 3), (21, 13, 8, 5, 3)])
def test_the_search_finds_a_tree_of_at_most_one_or_the_best_of_all(weights: tuple[int, ...]) -> None:
    best = min(error_bound(tree, weights) for tree in every_tree(tuple(range(len(weights)))))
    found = error_bound(best_tree(weights), weights)
    assert found <= max(1.0, best + 0.01)
    assert best > 0.5


def test_huffman_alone_would_be_above_one() -> None:
    """The case that makes the search worth it: Huffman pairs the tiny weight with one that is thereby rounded twice."""
    weights = (3000, 2000, 1000, 999, 1)
    huffman: Tree = (0, (1, (2, (4, 3))))
    assert error_bound(huffman, weights) > 1.2
    assert error_bound(best_tree(weights), weights) <= 1


@settings(deadline=None, max_examples=25)
@given(weights=st.lists(st.integers(1, 5000), min_size=2, max_size=12))
def test_rounding_along_the_tree_stays_within_the_bound(weights: list[int]) -> None:
    tree, total = best_tree(tuple(weights)), sum(weights)
    worst = 0.0

    def weight(node: Tree) -> int:
        return sum(weights[leaf] for leaf in leaves(node))

    def divide(node: Tree, m: np.ndarray) -> None:
        nonlocal worst
        if isinstance(node, int):
            worst = max(worst, float(np.abs(m - k * weights[node] / total).max()))
            return
        left = (2 * m * weight(node[0]) + weight(node)) // (2 * weight(node))
        divide(node[0], left)
        divide(node[1], m - left)

    k = np.arange(20_000)
    divide(tree, k)
    assert worst <= error_bound(tree, weights) + 1e-9


def test_order_of_the_weights_does_not_matter() -> None:
    bounds = {round(error_bound(best_tree(order), order), 9) for order in permutations((50, 30, 15, 4, 1))}
    assert max(bounds) <= 1


def test_one_source() -> None:
    assert best_tree((7,)) == 0
    assert error_bound(0, (7,)) == 0
    assert math.isclose(error_bound(best_tree((1, 1)), (1, 1)), 0.5)
