"""Metrics of resampled rows are those of `task_metrics` on the rows themselves, and intervals mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from lmrecipes.combine.bootstrap import Resamples, interval, resampled_means, resampled_metric
from lmrecipes.metrics import task_metrics
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe import METRICS, TaskKind

ROWS = 60


def outputs(kind: TaskKind) -> tuple[HeadSpec, np.ndarray, np.ndarray]:
    """A head, values with ties, and targets that are related to them."""
    rng = np.random.default_rng(7)
    if kind == "regression":
        targets = rng.integers(0, 6, ROWS).astype(np.float64)
        return HeadSpec(kind, (), (0.0,), 1.0), np.round(targets + rng.normal(size=ROWS), 0), targets
    if kind == "classification":
        values, targets = rng.normal(size=(ROWS, 4)), rng.integers(0, 3, ROWS)
        values[np.arange(ROWS), targets] += 1
        return HeadSpec(kind, tuple("abcd"), (0.0,) * 4, 1.0), values, targets  # a class that never occurs
    if kind == "multi_label":
        targets = rng.integers(0, 2, (ROWS, 3))
        return HeadSpec(kind, tuple("abc"), (0.0,) * 3, 1.0), rng.normal(size=(ROWS, 3)) + targets, targets
    tokens = rng.integers(1, 30, ROWS)
    values = np.stack([tokens * rng.random(ROWS) * 3, tokens * rng.random(ROWS)], axis=1)
    return HeadSpec(kind, (), (), 1.0), values, np.stack([tokens, tokens * 4], axis=1)


@pytest.mark.parametrize(("kind", "metric"), [(kind, metric) for kind, of in METRICS.items() for metric in of])
def test_a_resampled_metric_is_the_metric_of_the_rows(kind: TaskKind, metric: str) -> None:
    spec, values, targets = outputs(kind)
    draws = Resamples(ROWS, draws=12)
    found = resampled_metric(metric, spec, values, targets, draws)
    rows = np.concatenate(list(draws.indices()))
    wanted = [task_metrics((metric,), spec, values[r], targets[r])[metric] for r in rows]
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert found.std() > 0


def test_draws_are_with_replacement_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(Resamples(50, draws=200).indices()))
    monkeypatch.setattr("lmrecipes.combine.bootstrap.AT_ONCE", 300)
    assert (np.concatenate(list(Resamples(50, draws=200).indices())) == whole).all()
    assert whole.min() == 0
    assert whole.max() == 49
    distinct = np.mean([len(set(row)) / 50 for row in whole.tolist()])
    assert distinct == pytest.approx(1 - (1 - 1 / 50) ** 50, abs=0.02)
    assert not (np.concatenate(list(Resamples(50, key=1, draws=200).indices())) == whole).all()


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        low, high = interval(resampled_means(rng.normal(size=80), Resamples(80, number, 300)))
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.98


def test_paired_differences_are_narrower() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=400)
    other = one + 0.1 + 0.01 * rng.normal(size=400)
    draws = Resamples(400)
    low, high = interval(resampled_means(other, draws) - resampled_means(one, draws))
    assert 0.098 < low < 0.1 < high < 0.102
