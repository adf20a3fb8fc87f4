"""Metrics of resampled rows are those of `task_metrics` on the rows themselves, and intervals mean what they say."""

from __future__ import annotations

import numpy as np
import pytest

from lmrecipes.combine.bootstrap import Resamples, homes_of, interval, resampled_means, resampled_metric
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


GROUPS = np.repeat(np.arange(15, dtype=np.uint64) * 7, [1, 2, 3, 4, 5, 7, 2, 3, 5, 8, 1, 9, 3, 4, 3])
"""Of `ROWS` rows, in groups of several sizes."""


def all_counts(draws: Resamples) -> np.ndarray:
    return np.concatenate(list(draws.counts()))


@pytest.mark.parametrize("homes", [None, homes_of(GROUPS)], ids=["rows", "groups"])
@pytest.mark.parametrize(("kind", "metric"), [(kind, metric) for kind, of in METRICS.items() for metric in of])
def test_a_resampled_metric_is_the_metric_of_the_rows(kind: TaskKind, metric: str, homes: np.ndarray | None) -> None:
    spec, values, targets = outputs(kind)
    draws = Resamples(ROWS, draws=12, homes=homes)
    found = resampled_metric(metric, spec, values, targets, draws)
    rows = [np.repeat(np.arange(ROWS), counts.astype(int)) for counts in all_counts(draws)]
    wanted = [task_metrics((metric,), spec, values[r], targets[r])[metric] for r in rows]
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert found.std() > 0


def test_draws_are_with_replacement_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = all_counts(Resamples(50, draws=200))
    monkeypatch.setattr("lmrecipes.combine.bootstrap.AT_ONCE", 300)
    assert (all_counts(Resamples(50, draws=200)) == whole).all()
    assert (whole.sum(axis=1) == 50).all()
    assert (whole > 0).mean() == pytest.approx(1 - (1 - 1 / 50) ** 50, abs=0.02)
    assert not (all_counts(Resamples(50, key=1, draws=200)) == whole).all()


def test_groups_are_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Resamples.of(ROWS, GROUPS)
    counts = all_counts(draws)
    firsts = np.unique(GROUPS, return_index=True)[1]
    assert draws.groups == 15
    assert (counts == counts[:, firsts][:, homes_of(GROUPS)]).all()
    assert (counts[:, firsts].sum(axis=1) == 15).all()
    monkeypatch.setattr("lmrecipes.combine.bootstrap.AT_ONCE", 300)
    assert (all_counts(draws) == counts).all()
    for groups in (None, np.full(ROWS, 3, np.uint64)):  # one group would be drawn every time
        assert Resamples.of(ROWS, groups).groups is None


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for number in range(200):
        low, high = interval(resampled_means(rng.normal(size=80), Resamples(80, number, 300)))
        covered += low <= 0 <= high
    assert 0.89 <= covered / 200 <= 0.98


def test_an_interval_of_groups_covers_the_mean_where_that_of_rows_does_not() -> None:
    rng, groups, covered = np.random.default_rng(0), np.repeat(np.arange(40, dtype=np.uint64), 5), {}
    for number in range(200):
        rows = rng.normal(size=40)[groups] + 0.3 * rng.normal(size=200)
        for name, homes in (("rows", None), ("groups", homes_of(groups))):
            low, high = interval(resampled_means(rows, Resamples(200, number, 300, homes)))
            covered[name] = covered.get(name, 0) + (low <= 0 <= high) / 200
    assert 0.88 <= covered["groups"] <= 0.98
    assert covered["rows"] < 0.7


def test_paired_differences_are_narrower() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=400)
    other = one + 0.1 + 0.01 * rng.normal(size=400)
    draws = Resamples(400)
    low, high = interval(resampled_means(other, draws) - resampled_means(one, draws))
    assert 0.098 < low < 0.1 < high < 0.102
