"""Metrics against scikit-learn, scipy and plain formulas, with ties and classes that never occur."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from lmrecipes.metrics import mean_loss, task_metrics
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe import METRICS, TaskKind

RNG = np.random.default_rng(0)


def spec(kind: TaskKind, outputs: int = 1) -> HeadSpec:
    return HeadSpec(kind, tuple(map(str, range(outputs))), (0.0,) * outputs, 1.0)


def scores(kind: TaskKind, found: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    outputs = 1 if kind == "regression" else found.shape[1]
    return task_metrics(METRICS[kind], spec(kind, outputs), found, truth)


@pytest.mark.parametrize("levels", [None, 5])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_regression(levels: int | None, offset: float) -> None:
    truth = (RNG.normal(size=400) + offset).astype(np.float32)
    found = (truth + RNG.normal(size=400)).astype(np.float32)
    if levels:
        truth, found = np.round(truth), np.round(found)
    assert scores("regression", found, truth) == pytest.approx(
        {
            "spearman": stats.spearmanr(found, truth).statistic,
            "pearson": stats.pearsonr(found.astype(np.float64), truth.astype(np.float64)).statistic,
            "mean_squared_error": sk.mean_squared_error(truth.astype(np.float64), found.astype(np.float64)),
            "mean_absolute_error": sk.mean_absolute_error(truth.astype(np.float64), found.astype(np.float64)),
        },
        rel=1e-6,
    )


def test_spearman_of_many_ties_does_not_overflow() -> None:
    """Stars of 200,000 reviews: the ranks of one tie sum to 8e9."""
    truth = RNG.integers(1, 6, 200_000).astype(np.float32)
    found = np.where(RNG.random(200_000) < 0.7, truth, 3).astype(np.float32)
    value = task_metrics(("spearman",), spec("regression"), found, truth)["spearman"]
    assert value == pytest.approx(stats.spearmanr(found, truth).statistic, rel=1e-9)


@pytest.mark.parametrize("constant", [np.zeros(9), np.full(9, 0.1)])
def test_a_constant_has_no_correlation(constant: NDArray[np.float64]) -> None:
    for found, truth in [(constant, np.arange(9)), (np.arange(9), constant), (np.ones(1), np.ones(1))]:
        value = scores("regression", found, truth)
        assert math.isnan(value["spearman"])
        assert math.isnan(value["pearson"])
        assert value["mean_squared_error"] == pytest.approx(((found - truth) ** 2).mean())


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("present", [6, 4, 1])
def test_classification(present: int) -> None:
    """Of 6 classes only some occur; the others may be predicted."""
    truth = RNG.integers(0, present, 500).astype(np.int32)
    logits = (RNG.normal(size=(500, 6)) + 1.5 * np.eye(6)[truth]).astype(np.float32)
    chosen = logits.argmax(1)
    with np.errstate(all="ignore"):
        recalls = [(chosen[truth == c] == c).mean() for c in range(present)]
    assert scores("classification", logits, truth) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, chosen),
            "macro_f1": sk.f1_score(truth, chosen, average="macro"),
            "balanced_accuracy": np.mean(recalls),
        },
        rel=1e-5,
    )
    if present > 1:
        found = task_metrics(("balanced_accuracy",), spec("classification", 6), logits, truth)["balanced_accuracy"]
        assert found == pytest.approx(sk.balanced_accuracy_score(truth, chosen), rel=1e-5)


def test_two_classes() -> None:
    truth = RNG.integers(0, 2, 300)
    logits = RNG.normal(size=(300, 2)) + np.eye(2)[truth]
    chosen = logits.argmax(1)
    found = scores("classification", logits, truth)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, chosen, average="macro"), rel=1e-5)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, chosen), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_multi_label(scale: float) -> None:
    """Label 4 never occurs; at scale 30 the probabilities of many scores round to 1."""
    truth = (RNG.random((400, 5)) < [0.5, 0.3, 0.1, 0.02, 0]).astype(np.uint8)
    logits = (scale * (RNG.normal(size=(400, 5)) + 1.2 * truth - 0.6)).astype(np.float32)
    chosen = (logits > 0).astype(int)
    assert scores("multi_label", logits, truth) == pytest.approx(
        {
            "micro_f1": sk.f1_score(truth, chosen, average="micro"),
            "macro_f1": sk.f1_score(truth, chosen, average="macro", zero_division=0),
            "average_precision": sk.average_precision_score(truth, logits, average="micro"),
        },
        rel=1e-5,
    )


def test_one_label() -> None:
    truth = (RNG.random((200, 1)) < 0.3).astype(np.uint8)
    logits = RNG.normal(size=(200, 1)) + truth
    found = scores("multi_label", logits, truth)
    assert found["micro_f1"] == pytest.approx(sk.f1_score(truth[:, 0], logits[:, 0] > 0), rel=1e-5)


def test_mean_loss() -> None:
    truth, found = RNG.normal(size=100), RNG.normal(size=100)
    assert mean_loss(spec("regression"), found, truth) == pytest.approx(((found - truth) ** 2).mean())
    classes, logits = RNG.integers(0, 4, 100), RNG.normal(size=(100, 4))
    wanted = -log_softmax(logits, axis=1)[np.arange(100), classes].mean()
    assert mean_loss(spec("classification", 4), logits, classes) == pytest.approx(wanted)
    on = RNG.integers(0, 2, (100, 4))
    wanted = -(on * np.log(expit(logits)) + (1 - on) * np.log(expit(-logits))).mean()
    assert mean_loss(spec("multi_label", 4), logits, on) == pytest.approx(wanted)
    assert mean_loss(spec("multi_label", 4), logits * 1e4, on) < 1e5, "no overflow"


def test_every_metric_of_the_recipe_is_computed() -> None:
    for kind, names in METRICS.items():
        found = RNG.normal(size=(20, 3)) if kind != "regression" else RNG.normal(size=20)
        truth: NDArray[Any] = {"regression": RNG.normal(size=20), "classification": RNG.integers(0, 3, 20)}.get(
            kind, RNG.integers(0, 2, (20, 3))
        )
        value = task_metrics(names, spec(kind, found.shape[-1] if found.ndim > 1 else 1), found, truth)  # type: ignore[arg-type]
        assert list(value) == list(names)
        assert all(isinstance(one, float) for one in value.values())


def test_inputs_are_not_changed() -> None:
    truth, found = np.arange(5, dtype=np.float32), np.arange(5, dtype=np.float32)[::-1].copy()
    truth.setflags(write=False)
    before = found.copy()
    assert scores("regression", found, truth)["spearman"] == pytest.approx(-1)
    assert np.array_equal(found, before)
