"""The regression and its choice, on surfaces whose best mixture is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrecipes.search.design import candidates, design
from lmrecipes.search.fit import Found, find, rank_correlation, rounded


class Surface:
    """Losses that fall with a task's share by a power law of its own, as losses do: c + a w^-b, [points, tasks]."""

    def __init__(self, tasks: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.own = rng.dirichlet(np.full(tasks, 3.0)) * 0.9 + 0.1 / tasks
        self.a, self.b = rng.uniform(0.02, 0.2, tasks), rng.uniform(0.2, 0.6, tasks)
        self.c = rng.uniform(0, 0.3, tasks)

    def __call__(self, shares: np.ndarray) -> np.ndarray:
        return self.c + self.a * shares**-self.b

    def fit(self, runs: int, noise: float, seed: int) -> Found:
        shares = design(self.own, runs, seed)
        costs = self(shares) + noise * np.random.default_rng(seed).normal(size=shares.shape)
        return find(shares, costs, np.arange(len(self.own)), self.own, seed)

    def reached(self, found: Found) -> tuple[float, float]:
        """The true gain of the found mixture, and that of the best among many."""
        at = [self(shares[None]).mean() for shares in (self.own, found.shares)]
        best = self(candidates(self.own, 20_000, 99)).mean(axis=1).min()
        return at[0] - at[1], at[0] - best


@pytest.mark.parametrize("tasks", [2, 4, 10])
def test_finds_nearly_all_of_the_gain_that_there_is(tasks: int) -> None:
    reached, possible = np.sum([(s := Surface(tasks, k)).reached(s.fit(24, 0.005, k)) for k in range(8)], axis=0)
    assert reached > 0.75 * possible


def test_a_clear_surface_is_predicted_well() -> None:
    for seed in range(6):
        surface = Surface(4, seed)
        found = surface.fit(24, 0.0, seed)
        true_gain, possible = surface.reached(found)
        assert found.rank_correlation > 0.9
        assert found.gain == pytest.approx(true_gain, abs=0.2 * possible + 0.001)
        assert found.costs == pytest.approx(surface(found.shares[None])[0], abs=0.05)
        assert found.own_costs == pytest.approx(surface(surface.own[None])[0], abs=0.05)


def test_from_the_best_start_nothing_is_promised() -> None:
    """a = 1 each and one exponent: equal shares are the optimum."""
    own = np.full(4, 0.25)
    shares = design(own, 24, 3)
    found = find(shares, 0.1 * shares**-0.5, np.arange(4), own, 3)
    assert found.gain < 0.003
    assert found.shares == pytest.approx(own, abs=0.04)


def test_only_the_targets_count() -> None:
    own = np.full(3, 1 / 3)
    shares = design(own, 24, 0)
    one = find(shares, 0.1 * shares[:, [2]] ** -0.5, np.array([2]), own, 0)
    assert one.shares[2] > 0.6
    assert one.costs.shape == (1,)


def test_another_task_that_helps_is_seen() -> None:
    """Task 0 gains nothing by its own rows, all by those of task 1."""
    own = np.full(3, 1 / 3)
    shares = design(own, 32, 0)
    found = find(shares, 0.1 * shares[:, [1]] ** -0.5, np.array([0]), own, 0)
    assert found.shares[1] > 0.6


def test_noise_is_not_predicted() -> None:
    own, gains, ranks = np.array([0.4, 0.3, 0.2, 0.1]), [], []
    for seed in range(12):
        shares = design(own, 24, seed)
        costs = 1 + 0.02 * np.random.default_rng(seed).normal(size=shares.shape)
        found = find(shares, costs, np.arange(4), own, seed)
        gains.append(found.gain)
        ranks.append(found.rank_correlation)
    assert np.mean(ranks) < 0.1
    assert np.mean(gains) < 0.01  # one proxy's mean cost has this much noise


def test_the_error_of_the_gain_covers_what_noise_does_to_it() -> None:
    misses = []
    for seed in range(16):
        surface = Surface(4, seed)
        found = surface.fit(32, 0.01, seed)
        misses.append((found.gain - surface.reached(found)[0]) / found.gain_error)
    assert np.sqrt(np.mean(np.square(misses))) < 3


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=200))
def test_rounded_shares_sum_to_one(raw: list[float]) -> None:
    shares = np.array(raw) / sum(raw)
    found = rounded(shares)
    assert round(found.sum(), 9) == 1
    assert (found >= 0.0001).all()
    assert np.abs(found - shares).max() <= 0.0001 * max(1, len(raw))
    assert np.array_equal(rounded(found), found)


def test_rank_correlation() -> None:
    assert rank_correlation(np.array([1.0, 2.0, 30.0]), np.array([5.0, 6.0, 6.5])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == pytest.approx(-1)
    assert rank_correlation(np.ones(3), np.array([3.0, 2.0, 1.0])) == 0
