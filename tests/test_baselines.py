"""The linear baselines: right shapes and signs on data that a bag of words decides."""

import numpy as np
import pytest

from lmrecipes.baselines import linear, media_features, text_features
from lmrecipes.data.audio import AudioReader
from lmrecipes.data.inputs import AudioSpec, ImageSpec
from lmrecipes.data.media import MediaArrays
from lmrecipes.data.media_rows import joined
from lmrecipes.recipe import Recipe, TaskKind
from lmrecipes.tracking.results import markdown_results

WORDS = ["red", "green", "blue", "round"]


def tfidf_linear(
    kind: TaskKind, train: list[str], targets: np.ndarray, texts: list[str], classes: int, seed: int
) -> np.ndarray:
    known, asked = text_features(train, texts)
    return linear(kind, [known], targets, [asked], classes, seed)


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


def arrays_of(values: list[np.ndarray | None], spec: ImageSpec | AudioSpec) -> MediaArrays:
    whole, held = joined(values, spec)
    return MediaArrays(whole, np.concatenate([[0], np.cumsum(held)]), spec)


def test_digit_images() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [np.rint(image * 15.9).astype(np.uint8)[:, :, None] for image in digits.images]
    spec = ImageSpec(8, 8, 1, 4)
    train, test = arrays_of([*images[:1200], None], spec), arrays_of(images[1200:], spec)
    targets = np.append(digits.target[:1200], 0)
    known, asked = media_features(train, test, np.arange(300))
    assert known.dtype == asked.dtype == np.float32
    assert (known[-1] == 0).all(), "a row without an image has the mean"
    found = linear("classification", [known], targets, [asked], 11, 0)
    assert found.shape == (300, 11)
    assert (found.argmax(1) == digits.target[1200:1500]).mean() > 0.9
    assert (found[:, 10] < -100).all()
    value = linear("regression", [known], targets.astype(np.float32), [asked], 1, 0)
    assert np.corrcoef(value, digits.target[1200:1500])[0, 1] > 0.6


@pytest.mark.parametrize("kind", ["log_mel", "waveform"])
def test_tones(kind: str) -> None:
    own = AudioSpec("log_mel", 8000, 8000, mels=12, window=200, hop=80, stack=4)
    spec = own if kind == "log_mel" else AudioSpec("waveform", 8000, 8000, kernels=(10,), strides=(5,))
    random, reader = np.random.default_rng(0), AudioReader("a", spec)
    high = random.random(80) < 0.5
    clips = []
    for i, is_high in enumerate(high):
        hz = (900 if is_high else 400) * random.uniform(0.9, 1.1)
        tone = np.sin(2 * np.pi * hz * np.arange(2000 + 40 * i) / 8000) * random.uniform(0.1, 0.9)
        clips.append(reader({"array": tone, "sampling_rate": 8000}, None).values)
    known, asked = media_features(arrays_of(clips[:60], spec), arrays_of(clips, spec), np.arange(60, 80))
    found = linear("classification", [known], high[:60].astype(np.int32), [asked], 2, 0)
    assert (found.argmax(1) == high[60:]).all()
    sets = linear("multi_label", [known], np.stack([high, ~high], 1)[:60], [asked], 2, 0)
    assert np.array_equal(sets > 0, np.stack([high, ~high], 1)[60:])


def test_text_and_image_side_by_side(data: tuple[list[str], np.ndarray, list[str], np.ndarray]) -> None:
    texts, holds, test_texts, test_holds = data
    spec, random = ImageSpec(4, 4, 1, 1), np.random.default_rng(0)
    bright, test_bright = random.random(1200) < 0.5, random.random(200) < 0.5
    train, test = (
        arrays_of([np.full((4, 4, 1), 200 * b, np.uint8) for b in values], spec) for values in (bright, test_bright)
    )
    said, seen = text_features(texts, test_texts), media_features(train, test, np.arange(200))
    targets = 2 * holds[:, 0] + bright
    found = linear("classification", [said[0], seen[0]], targets, [said[1], seen[1]], 4, 0)
    assert (found.argmax(1) == 2 * test_holds[:, 0] + test_bright).mean() > 0.97


def test_the_table_says_what_the_linear_models_read() -> None:
    from lmrecipes.results import _labelled, _of_linear

    def task(**source: str) -> dict[str, object]:
        return {"kind": "regression", "source": {"files": "x.jsonl", **source}}

    tasks = {"words": task(), "pair": task(text="t", image="i"), "pixels": task(image="i"), "more": task(text="t")}
    recipe = Recipe.model_validate({"name": "x", "tasks": tasks})
    assert _labelled(recipe) == list(tasks)
    said = {"title": "linear", "note": "TF-IDF of words, more; TF-IDF and pixels of pair; pixels of pixels"}
    assert _of_linear(recipe) == said
    recipe = Recipe.model_validate({"name": "x", "tasks": {"words": task()}})
    assert _of_linear(recipe) == {"title": "TF-IDF + linear"}
    baselines = {"linear": {**said, "measured": "stored", "date": "today", "tasks": {}}}
    text = markdown_results({"tasks": {"words": {"metrics": {"spearman": 0.5}}}, "baselines": baselines})
    assert "| linear |" in text
    assert f"linear ({said['note']}): stored, today" in text
