"""The shares to try: always a simplex, spread around the recipe's own, and the same for ever."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.search.design import BLOCK, SPREADS, _stratified, candidates, design

weights = st.lists(st.floats(0.01, 100), min_size=2, max_size=30).map(lambda found: np.array(found) / sum(found))


@settings(deadline=None)
@given(own=weights, points=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_every_point_is_a_mixture_of_all_tasks(own: np.ndarray, points: int, seed: int) -> None:
    for shares in (design(own, points, seed), candidates(own, points, seed)):
        assert shares.shape == (points, len(own))
        assert np.allclose(shares.sum(axis=1), 1)
        assert (shares > 0).all()


@settings(deadline=None)
@given(own=weights, points=st.integers(1, 30), more=st.integers(0, 20), seed=st.integers(0, 2**32 - 1))
def test_a_longer_design_begins_with_the_shorter(own: np.ndarray, points: int, more: int, seed: int) -> None:
    assert np.array_equal(design(own, points + more, seed)[:points], design(own, points, seed))


def test_the_recipes_own_shares_are_a_candidate() -> None:
    own = np.array([0.7, 0.2, 0.1])
    assert np.array_equal(candidates(own, 10, 0)[0], own)


def test_seeds_and_points_differ() -> None:
    own = np.full(3, 1 / 3)
    shares = np.concatenate([design(own, 24, seed) for seed in range(4)])
    assert len(np.unique(shares, axis=0)) == len(shares)


@pytest.mark.parametrize("own", [np.array([0.5, 0.5]), np.array([0.38, 0.28, 0.26, 0.08])])
def test_shares_lie_around_the_recipes_by_the_same_factor_for_small_and_large_tasks(own: np.ndarray) -> None:
    ratios = np.log(design(own, 4000, 1) / own)
    centred = ratios - ratios.mean(axis=1, keepdims=True)  # what remains is the normal draw without its mean
    expected = np.sqrt(np.mean(np.linspace(*SPREADS, 1000) ** 2) * (1 - 1 / len(own)))
    assert np.allclose(centred.mean(axis=0), 0, atol=0.05)
    assert np.allclose(centred.std(axis=0), expected, rtol=0.06)
    correlation = np.corrcoef(centred.T)[0, 1]
    assert correlation == pytest.approx(-1 / (len(own) - 1), abs=0.06)


def test_each_block_tries_every_task_often_and_rarely() -> None:
    for seed in range(5):
        uniform = _stratified(np.arange(3 * BLOCK), 4, seed)
        for block in range(3):
            part = uniform[block * BLOCK : (block + 1) * BLOCK]
            assert np.array_equal(np.sort((part * BLOCK).astype(int), axis=0), np.arange(BLOCK)[:, None].repeat(4, 1))


def test_the_design_is_pinned() -> None:
    """A search that a later version continues must go on with the same points."""
    found = design(np.array([0.6, 0.37, 0.03]), 10, 0)[[0, 9]]
    assert found.round(6).tolist() == [[0.798142, 0.17829, 0.023569], [0.244535, 0.686825, 0.06864]]
