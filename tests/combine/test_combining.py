"""The arithmetic of combinations: probabilities, averages, temperatures, stacks, calibration."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmrecipes.combine.averaging import _likelihoods, _squares, average, stack
from lmrecipes.combine.calibration import best_temperature, calibration_error, deviation_of, row_losses
from lmrecipes.combine.combination import Blend
from lmrecipes.combine.values import probabilities, scaled, values_of
from lmrecipes.models.heads import HeadSpec

CLASSES = HeadSpec("classification", ("a", "b", "c"), (0.0,) * 3, 1.0)
LABELS = HeadSpec("multi_label", ("a", "b"), (0.0,) * 2, 1.0)
NUMBERS = HeadSpec("regression", (), (0.0,), 1.0)


def classes(loss: str) -> HeadSpec:
    return HeadSpec("classification", ("a", "b", "c"), (0.0,) * 3, 1.0, loss=loss)  # type: ignore[arg-type]


def drawn(seed: int, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)) * 2


def test_probabilities_by_hand() -> None:
    logits = np.array([[0.0, math.log(2), math.log(5)]])
    assert probabilities(CLASSES, logits)[0] == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    each = probabilities(classes("binary_cross_entropy"), np.array([[0.0, math.log(3), -math.log(3)]]))
    assert each[0] == pytest.approx(np.array([0.5, 0.75, 0.25]) / 1.5)
    squares = probabilities(classes("mean_squared_error"), np.array([[1.1, 0.3, -0.3], [0.2, 0.5, 0.3]]))
    assert squares == pytest.approx(np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]))
    assert probabilities(LABELS, np.array([[0.0, math.log(3)]]))[0] == pytest.approx([0.5, 0.75])
    assert probabilities(NUMBERS, np.array([1.5, -2.0])).tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "spec", [CLASSES, LABELS, NUMBERS, classes("binary_cross_entropy"), classes("mean_squared_error")]
)
def test_values_stand_for_their_probabilities(spec: HeadSpec) -> None:
    values = drawn(0, 50, spec.outputs) if spec.kind != "regression" else drawn(0, 50, 1)[:, 0]
    found = probabilities(spec, values)
    assert values_of(spec, found).dtype == np.float32
    again = probabilities(spec, values_of(spec, found))
    assert again == pytest.approx(found, abs=1e-5)
    if spec.kind == "classification":
        assert (found.argmax(axis=1) == np.asarray(values).argmax(axis=1)).all()
        assert found.sum(axis=1) == pytest.approx(1)


def test_certain_probabilities_stay_finite() -> None:
    values = values_of(CLASSES, np.array([[1.0, 0.0, 0.0]]))
    assert np.isfinite(values).all()
    assert np.isfinite(values_of(LABELS, np.array([[1.0, 0.0]]))).all()
    assert row_losses(CLASSES, np.array([[1.0, 0.0, 0.0]]), np.array([1]))[0] == pytest.approx(-math.log(1e-12))


def test_an_average_by_hand() -> None:
    one, other = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.7, 0.2]])
    assert Blend((0.5, 0.5))(CLASSES, [one, other])[0] == pytest.approx([0.3, 0.5, 0.2])
    assert Blend((0.25, 0.75))(NUMBERS, [np.array([4.0]), np.array([8.0])])[0] == 7.0
    sharper = Blend((0.5, 0.5), 0.5)(CLASSES, [one, other])[0]
    assert sharper == pytest.approx(np.array([0.09, 0.25, 0.04]) / 0.38)
    odds = Blend((1.0,), 0.5)(LABELS, [np.array([[0.75, 0.5]])])[0]
    assert odds == pytest.approx([0.9, 0.5])  # odds 3 become 9


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("spec", [CLASSES, LABELS], ids=["classes", "labels"])
def test_a_planted_temperature_is_found(spec: HeadSpec, temperature: float) -> None:
    rng = np.random.default_rng(1)
    true = probabilities(spec, drawn(2, 40_000, spec.outputs))
    if spec.kind == "classification":
        targets = (rng.random((len(true), 1)) > true.cumsum(axis=1)).sum(axis=1)
    else:
        targets = (rng.random(true.shape) < true).astype(np.uint8)
    shown = scaled(spec, true, 1 / temperature)  # more, or less, sure than is right
    found = best_temperature(spec, shown, targets)
    assert found == pytest.approx(temperature, rel=0.05)
    before, after = (calibration_error(spec, p, targets) for p in (shown, scaled(spec, shown, found)))
    assert after < 0.012
    assert temperature == 1.0 or after < before / 3
    around = [row_losses(spec, scaled(spec, shown, found * f), targets).mean() for f in (0.97, 1, 1.03)]
    assert min(around) == around[1]


def test_calibration_error_by_hand() -> None:
    sure = np.array([[0.9, 0.1, 0.0]] * 4 + [[0.2, 0.6, 0.2]] * 2)
    targets = np.array([0, 0, 0, 1, 1, 1])
    assert calibration_error(CLASSES, sure, targets) == pytest.approx((4 * abs(0.75 - 0.9) + 2 * abs(1 - 0.6)) / 6)
    labels = np.array([[0.5, 0.05]] * 2)
    assert calibration_error(LABELS, labels, np.array([[1, 0], [0, 0]])) == pytest.approx((0 + 2 * 0.05) / 4)
    rng = np.random.default_rng(3)
    found = rng.normal(size=20_000)
    targets = found + 2 * rng.normal(size=20_000)
    assert deviation_of(found, targets) == pytest.approx(2, rel=0.02)
    assert calibration_error(NUMBERS, found, targets, 2.0) < 0.01
    assert calibration_error(NUMBERS, found, targets, 0.5) > 0.15


def test_losses_by_hand() -> None:
    assert row_losses(LABELS, np.array([[0.25, 0.5]]), np.array([[1, 0]]))[0] == pytest.approx(math.log(8) / 2)
    gauss = row_losses(NUMBERS, np.array([1.0]), np.array([3.0]), 2.0)[0]
    assert gauss == pytest.approx(0.5 + math.log(2 * math.sqrt(2 * math.pi)))


def planted(spec: HeadSpec, weights: list[float], rows: int = 60_000) -> tuple[list[np.ndarray], np.ndarray]:
    """Members, and targets that are drawn from their mixture with these weights."""
    rng = np.random.default_rng(5)
    if spec.kind == "regression":
        members = [rng.normal(size=rows) for _ in weights]
        return members, np.sum([w * m for w, m in zip(weights, members, strict=True)], axis=0) + rng.normal(size=rows)
    members = [probabilities(spec, drawn(seed, rows, spec.outputs)) for seed in range(len(weights))]
    mixed = np.sum([w * m for w, m in zip(weights, members, strict=True)], axis=0)
    if spec.kind == "classification":
        return members, (rng.random((rows, 1)) > mixed.cumsum(axis=1)).sum(axis=1)
    return members, (rng.random(mixed.shape) < mixed).astype(np.uint8)


@pytest.mark.parametrize("spec", [CLASSES, LABELS, NUMBERS], ids=["classes", "labels", "numbers"])
def test_a_stack_finds_planted_weights(spec: HeadSpec) -> None:
    weights = [0.6, 0.0, 0.4]
    members, targets = planted(spec, weights)
    blend = stack(spec, members, targets)
    assert blend.weights == pytest.approx(weights, abs=0.03)
    assert sum(blend.weights) == pytest.approx(1)
    assert blend.temperature == pytest.approx(1, abs=0.05)
    equal = average(spec, members, targets)
    assert equal.weights == pytest.approx([1 / 3] * 3)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), members=st.integers(1, 4), pull=st.sampled_from([0.0, 0.1, 3.0, math.inf]))
def test_fitted_weights_are_the_best_at_their_pull(seed: int, members: int, pull: float) -> None:
    rng = np.random.default_rng(seed)
    given = rng.random((40, members)) + 1e-3
    errors = rng.normal(size=(40, members))

    def of_likelihoods(weights: np.ndarray) -> float:
        spread = 0.0 if pull == 0 else pull * np.log(np.maximum(weights, 1e-300)).mean()
        return float(-np.log(given @ weights).mean() - spread)

    def of_squares(weights: np.ndarray) -> float:
        spread = 0.0 if pull == 0 else pull * (errors**2).mean() * (weights**2).sum()
        return float(((errors @ weights) ** 2).mean() + spread)

    equal = np.full(members, 1 / members)
    for fit, scores, loss in ((_likelihoods, given, of_likelihoods), (_squares, errors, of_squares)):
        weights = fit(scores, pull)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)
        if math.isinf(pull):
            assert weights == pytest.approx(equal)
            continue
        for other in [equal, *np.eye(members), *rng.dirichlet(np.ones(members), 20)]:
            assert loss(weights) <= loss(other) + 1e-4


@pytest.mark.parametrize("spec", [CLASSES, LABELS, NUMBERS], ids=["classes", "labels", "numbers"])
def test_a_member_that_was_lucky_with_a_few_groups_is_not_trusted(spec: HeadSpec) -> None:
    """Two members that are equally good, of which each is right about half of the groups; by chance one about more."""
    groups = np.repeat(np.arange(9, dtype=np.uint64), 200)
    lucky = np.isin(groups, [0, 2, 3, 5, 7])
    rng = np.random.default_rng(2)
    if spec.kind == "regression":
        targets = rng.normal(size=len(groups))
        noise = 0.1 * rng.normal(size=(2, len(groups)))
        one, other = targets + noise[0] + np.where(lucky, 0.0, 1.0), targets + noise[1] + np.where(lucky, 1.0, 0.0)
    else:
        right = probabilities(spec, rng.normal(size=(len(groups), spec.outputs)) * 4)
        targets = right.argmax(axis=1) if spec.kind == "classification" else (right > 0.5).astype(np.uint8)
        flat = np.full_like(right, 1 / 3 if spec.kind == "classification" else 0.5)
        one, other = np.where(lucky[:, None], right, flat), np.where(lucky[:, None], flat, right)
    assert stack(spec, [one, other], targets, groups).weights == pytest.approx([0.5, 0.5])
    assert stack(spec, [one, other], targets).weights[0] > 0.52  # rows by themselves would be sure


@pytest.mark.parametrize("spec", [CLASSES, LABELS, NUMBERS], ids=["classes", "labels", "numbers"])
def test_equal_members_are_stacked_equally(spec: HeadSpec) -> None:
    members, targets = planted(spec, [1.0], rows=200)
    blend = stack(spec, members * 3, targets)
    assert blend.weights == pytest.approx([1 / 3] * 3, abs=1e-6)
    assert blend(spec, members * 3) == pytest.approx(average(spec, members * 3, targets)(spec, members * 3), abs=1e-6)
