"""Metrics against scikit-learn, scipy and plain formulas, with ties and classes that never occur."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from scipy.special import expit, log_softmax
from sklearn import metrics as sk

from lmrecipes.data.permutation import hash_key, hash_uniform
from lmrecipes.files import json_text
from lmrecipes.metrics import mean_loss, task_metrics
from lmrecipes.models.heads import HeadSpec
from lmrecipes.recipe import METRICS, TOKEN_KINDS, TaskKind

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


TEXTS = np.array([[12.0, 3], [1.5, 2], [90.0, 0]]), np.array([[8, 40], [2, 9], [30, 101]])
"""Of three texts: (nats, tokens right), (tokens, bytes)."""


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_tokens(kind: TaskKind) -> None:
    """Sums over all texts, never means of means."""
    found, truth = TEXTS
    assert mean_loss(spec(kind, 0), found, truth) == pytest.approx(103.5 / 40)
    assert scores(kind, found, truth) == pytest.approx(
        {"perplexity": 13.296489, "bits_per_byte": 0.995464, "token_accuracy": 0.125}, rel=1e-5
    )


def test_a_perplexity_beyond_all_numbers_is_infinite_and_null_in_files() -> None:
    found, truth = np.array([[7e4, 0.0]]), np.array([[10, 20]])
    value = scores("language_modelling", found, truth)
    assert value["perplexity"] == math.inf
    assert math.isfinite(value["bits_per_byte"]) and mean_loss(spec("chat", 0), found, truth) == 7e3
    assert json.loads(json_text(value))["perplexity"] is None


@st.composite
def cut_texts(draw: st.DrawFn) -> list[list[bytes]]:
    """Texts, each cut into tokens of some bytes."""
    texts = []
    for text in draw(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=6)):
        cuts = sorted(draw(st.sets(st.integers(1, len(text)), max_size=12)) | {0, len(text)})
        texts.append([text[a:b] for a, b in pairwise(cuts)])
    return texts


def nats(token: bytes, before: bytes) -> float:
    """Of a token under a model of bytes: each byte's probability depends on all bytes before it in its text."""
    total = 0.0
    for at, byte in enumerate(token):
        weights = hash_uniform(hash_key("model", (before + token[:at]).hex()), np.arange(256)) + 0.01
        total -= math.log(weights[byte] / weights.sum())
    return total


@given(cut_texts(), st.randoms(use_true_random=False))
def test_bits_per_byte_do_not_depend_on_how_texts_are_cut(texts: list[list[bytes]], random: Random) -> None:
    """The same model over the same bytes: as these tokens, as single bytes, and with texts split at any token."""

    def measured(tokens_of_texts: list[list[tuple[float, int]]]) -> dict[str, float]:
        found = np.array([[sum(nat for nat, _ in tokens), 0] for tokens in tokens_of_texts])
        truth = np.array([[len(tokens), sum(size for _, size in tokens)] for tokens in tokens_of_texts])
        return scores("language_modelling", found, truth)

    as_tokens = [
        [(nats(token, b"".join(tokens[:at])), len(token)) for at, token in enumerate(tokens)] for tokens in texts
    ]
    whole = [b"".join(tokens) for tokens in texts]
    as_bytes = [[(nats(text[at : at + 1], text[:at]), 1) for at in range(len(text))] for text in whole]
    parted = [(tokens, random.randint(0, len(tokens))) for tokens in as_tokens]
    halves = [part for tokens, at in parted for part in (tokens[:at], tokens[at:]) if part]
    bits = measured(as_bytes)["bits_per_byte"]
    assert measured(as_tokens)["bits_per_byte"] == pytest.approx(bits)
    assert measured(halves) == pytest.approx(measured(as_tokens))
    bits_of_all = sum(nats(text, b"") for text in whole) / math.log(2)
    assert bits == pytest.approx(bits_of_all / sum(map(len, whole)))


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
