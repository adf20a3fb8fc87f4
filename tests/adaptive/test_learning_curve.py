"""The fitted power law: planted ones are found, noise is averaged, and a loss that does not fall has no speed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.adaptive.learning_curve import EXPONENTS, fit_power_law
from lmrecipes.data.permutation import hash_uniform

ROUNDS = list(range(2, 40))


def curve(floor: float, scale: float, exponent: float) -> list[float]:
    return [floor + scale * n**-exponent for n in ROUNDS]


@settings(deadline=None)
@given(st.floats(0, 2), st.floats(0.05, 5), st.sampled_from(EXPONENTS.tolist()))
def test_a_planted_law_is_found(floor: float, scale: float, exponent: float) -> None:
    found = fit_power_law(ROUNDS, curve(floor, scale, exponent), [7] * len(ROUNDS))
    assert found.exponent == pytest.approx(exponent, abs=0.011)
    assert found.floor == pytest.approx(floor, abs=1e-5 + 0.05 * scale)
    for n in (2, 20, 60):
        assert found.floor + found.scale * n**-found.exponent == pytest.approx(floor + scale * n**-exponent, rel=1e-2)
        assert found.speed(n) == pytest.approx(scale * exponent * n ** (-exponent - 1), rel=0.05)


def test_a_planted_law_is_found_under_noise() -> None:
    noise = np.exp(0.02 * (hash_uniform(5, np.arange(400)) - 0.5))
    rounds = list(range(1, 401))
    losses = [(0.3 + 0.9 * n**-0.4) * e for n, e in zip(rounds, noise, strict=True)]
    found = fit_power_law(rounds, losses, [1] * 400)
    assert (found.floor, found.scale, found.exponent) == pytest.approx((0.3, 0.9, 0.4), abs=0.05)


def test_points_count_by_their_observations() -> None:
    losses = curve(0.2, 1.0, 0.5)
    losses[3] *= 5
    few = fit_power_law(ROUNDS, losses, [1e-9 if i == 3 else 1.0 for i in range(len(ROUNDS))])
    assert (few.floor, few.scale, few.exponent) == pytest.approx((0.2, 1.0, 0.5), abs=1e-3)


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 10), min_size=2, max_size=8), st.floats(0, 10), st.floats(0, 10),
    st.sampled_from(EXPONENTS.tolist()),
)  # fmt: skip
def test_no_other_law_is_nearer(losses: list[float], floor: float, scale: float, exponent: float) -> None:
    """In the sum of squared relative errors."""

    def error(floor: float, scale: float, exponent: float) -> float:
        return sum(((floor + scale * n**-exponent) / loss - 1) ** 2 for n, loss in enumerate(losses, start=1))

    found = fit_power_law(range(1, len(losses) + 1), losses, [1] * len(losses))
    assert error(found.floor, found.scale, found.exponent) <= error(floor, scale, exponent) * (1 + 1e-6) + 1e-9


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30))
def test_any_losses_have_a_law(losses: list[float]) -> None:
    law = fit_power_law(range(1, len(losses) + 1), losses, [1] * len(losses))
    assert law.floor >= 0 <= law.scale
    assert math.isfinite(law.speed(len(losses)))
    assert law.floor <= max(losses) * (1 + 1e-12)
    assert law.floor + law.scale >= min(losses) * (1 - 1e-12)


def test_a_law_through_zero() -> None:
    """Losses that fall faster than the largest exponent ask for a negative floor; it is 0, and the scale fits that."""
    found = fit_power_law([1, 2, 3, 4], [1.0, 0.25, 1 / 9, 1 / 16], [1] * 4)
    assert found.floor == 0
    x = [n**-0.8 for n in (1, 2, 3, 4)]
    weights = [n**4 for n in (1, 2, 3, 4)]
    best = sum(w * u * n**-2 for w, u, n in zip(weights, x, (1, 2, 3, 4), strict=True))
    best /= sum(w * u**2 for w, u in zip(weights, x, strict=True))
    assert (found.scale, found.exponent) == pytest.approx((best, 0.8))


def test_a_loss_that_does_not_fall_has_no_speed() -> None:
    assert fit_power_law([1, 2, 3, 4], [0.5, 0.6, 0.7, 0.8], [1] * 4).speed(4) == 0
    assert fit_power_law([1, 2, 3, 4], [0.5] * 4, [1] * 4).speed(4) == pytest.approx(0, abs=1e-12)
