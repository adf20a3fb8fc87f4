"""The linear baselines: right shapes and signs on data that a bag of words decides."""

import numpy as np
import pytest

from lmrecipes.baselines import tfidf_linear

WORDS = ["red", "green", "blue", "round"]


def sentences(n: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of random words, and which of the four words each holds: [n, 4]."""
    random = np.random.default_rng(seed)
    holds = random.random((n, 4)) < 0.4
    texts = []
    for row in holds:
        words = [word for word, here in zip(WORDS, row, strict=True) if here]
        noise = [f"filler{i}" for i in random.integers(0, 30, 3)]
        texts.append(" ".join(random.permutation(words + noise)))
    return texts, holds.astype(np.uint8)


@pytest.fixture(scope="module")
def data() -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    return *sentences(1200, 0), *sentences(200, 1)


def test_regression(data: tuple[list[str], np.ndarray, list[str], np.ndarray]) -> None:
    texts, holds, test_texts, test_holds = data
    weights = np.array([1.0, -2.0, 0.5, 0.0])
    found = tfidf_linear("regression", texts, holds @ weights, test_texts, 1, 0)
    assert found.shape == (200,)
    assert found.dtype == np.float32
    assert np.corrcoef(found, test_holds @ weights)[0, 1] > 0.95


def test_classification(data: tuple[list[str], np.ndarray, list[str], np.ndarray]) -> None:
    texts, holds, test_texts, test_holds = data
    found = tfidf_linear("classification", texts, holds[:, 0].astype(np.int32), test_texts, 3, 0)
    assert found.shape == (200, 3)
    assert (found.argmax(1) == test_holds[:, 0]).mean() > 0.98
    assert not (found.argmax(1) == 2).any()  # a class without training rows


def test_multi_label(data: tuple[list[str], np.ndarray, list[str], np.ndarray]) -> None:
    texts, holds, test_texts, test_holds = data
    never, always = np.zeros((1200, 1), np.uint8), np.ones((1200, 1), np.uint8)
    found = tfidf_linear("multi_label", texts, np.concatenate([holds, never, always], 1), test_texts, 6, 0)
    assert found.shape == (200, 6)
    assert ((found[:, :4] > 0) == test_holds).mean() > 0.98
    assert (found[:, 4] < 0).all()
    assert (found[:, 5] > 0).all()


def test_same_seed_same_predictions(data: tuple[list[str], np.ndarray, list[str], np.ndarray]) -> None:
    texts, holds, test_texts, _ = data
    first, again = (tfidf_linear("multi_label", texts, holds, test_texts, 4, 3) for _ in range(2))
    assert np.array_equal(first, again)


def test_few_and_odd_texts() -> None:
    texts = ["!", "?", "...", "日本", "a"]
    assert np.isfinite(tfidf_linear("regression", texts, np.arange(5.0), ["new", "!"], 1, 0)).all()
    found = tfidf_linear("classification", texts, np.array([0, 0, 1, 1, 1]), ["!", "unseen"], 2, 0)
    assert found[0].argmax() == 0
