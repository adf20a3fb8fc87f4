"""What a linear model reaches on a task: the number that a fine-tuned model must be compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.data.audio import log_mel
from lmrecipes.data.inputs import AudioSpec, ImageSpec, own_specs
from lmrecipes.data.media import MediaArrays
from lmrecipes.recipe import Model, TaskKind

Array = NDArray[Any]
Block = Any
"""Features, one row for each example: a sparse matrix, or an array float32."""

RIDGE_PENALTY = 2.0
SVM_COST = {"classification": 0.3, "multi_label": 1.0}
"""Best of a grid in steps of about 3 on the offline data sets' validation splits; the ridge is flat from 1 to 4."""
LOGISTIC_COST = 30.0
"""Of pixels and log-mel frames, whose rows have a length of about 1."""
RARE_ROWS = 1000
"""From this many rows on, a feature of a single row is left out."""
GRID = 16
"""Times at which a clip's log-mel frames are taken, evenly over its length."""


def linear(
    kind: TaskKind, train: Sequence[Block], targets: Array, other: Sequence[Block], classes: int, seed: int
) -> Array:
    """Predictions of a linear model on blocks of features side by side, trained on all given rows; float32.

    Regression: ridge. Labels of texts: a linear support-vector machine of each class against the rest, whose threshold
    of 0 needs no tuning where labels are rare; where there are images or clips, logistic regression.

    targets: float [n] (regression), int [n] (classification), 0/1 [n, classes] (multi_label).
    Returns [m] (regression), or scores [m, classes]: the largest is the class, above 0 the label holds. A class without
    training rows never wins.
    """
    features, asked, dense = _side_by_side(train), _side_by_side(other), not _is_sparse(train[-1])
    targets = np.asarray(targets)
    if kind == "regression":
        from sklearn.linear_model import Ridge

        solver = "auto" if isinstance(features, np.ndarray) else "sparse_cg"
        ridge = Ridge(RIDGE_PENALTY, solver=solver, random_state=seed).fit(features, targets)
        return ridge.predict(asked).astype(np.float32)
    if kind == "classification":
        if dense:
            return _all_classes(features, targets, asked, classes)
        targets = targets[:, None] == np.arange(classes)
    one = [_one_label(features, targets[:, c] > 0, asked, dense, SVM_COST[kind], seed) for c in range(classes)]
    return np.stack(one, axis=1)


def text_features(train: list[str], other: list[str]) -> tuple[Block, Block]:
    """TF-IDF: 1-2-grams of words (sublinear term frequency) and 3-5-grams of characters within words; on the offline
    data sets the characters add 0.01 to 0.02 to the headline metric."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    rarest = 2 if len(train) >= RARE_ROWS else 1
    words = {"ngram_range": (1, 2), "token_pattern": r"(?u)\w+|[^\w\s]+", "min_df": rarest}
    characters = {"ngram_range": (3, 5), "analyzer": "char_wb", "min_df": 2 * rarest - 1}
    features = make_union(*(TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **o) for o in (words, characters)))
    return features.fit_transform(train), features.transform(other)


def media_features(train: MediaArrays, other: MediaArrays, rows: NDArray[np.int64]) -> tuple[Block, Block]:
    """Pixels, or log-mel frames at GRID times, of all training examples and of the `rows` of others: each feature less
    its mean, over its deviation. An example without an image or a clip has the mean."""
    first, second = _raw(train, np.arange(len(train.rows) - 1)), _raw(other, rows)
    mean, deviation = np.nanmean(first, axis=0), np.nanstd(first, axis=0)
    scale = 1 / (np.maximum(deviation, 1e-6 + 0.05 * deviation.max()) * np.float32(math.sqrt(first.shape[1])))
    return np.nan_to_num((first - mean) * scale), np.nan_to_num((second - mean) * scale)


def _raw(arrays: MediaArrays, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """[rows, features]; NaN where an example has none."""
    spec, starts, ends = arrays.spec, arrays.rows[rows], arrays.rows[rows + 1]
    if isinstance(spec, ImageSpec):
        found = np.full((len(rows), spec.height * spec.width * spec.channels), np.nan, np.float32)
        there = ends > starts
        found[there] = arrays.values[starts[there]].reshape(there.sum(), -1)
        return found
    frames_of = _frames(spec)
    found = np.full((len(rows), GRID * frames_of.mels), np.nan, np.float32)
    for row, start, end in zip(found, starts.tolist(), ends.tolist(), strict=True):
        if end > start:
            values = arrays.values[start:end].astype(np.float32)
            frames = values if spec.kind == "log_mel" else log_mel(values / np.float32(32767), frames_of)
            row[:] = frames[np.linspace(0, len(frames) - 1, GRID).round().astype(np.int64)].ravel()
    return found


def _frames(spec: AudioSpec) -> AudioSpec:
    """The log-mel frames that a clip is compared by: those that the front end reads, else our own at its rate."""
    if spec.kind == "log_mel":
        return spec
    model = Model.model_validate({"audio": {"sample_rate": spec.sample_rate}})
    own = own_specs(model)["audio"]
    assert isinstance(own, AudioSpec)
    return own


def _is_sparse(block: Block) -> bool:
    return not isinstance(block, np.ndarray)


def _side_by_side(blocks: Sequence[Block]) -> Block:
    if not any(map(_is_sparse, blocks)):
        return np.concatenate(blocks, axis=1)
    from scipy.sparse import hstack

    return blocks[0] if len(blocks) == 1 else hstack(list(blocks), format="csr", dtype=np.float32)


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=LOGISTIC_COST, max_iter=1000)


def _all_classes(train: Block, targets: Array, other: Block, classes: int) -> Array:
    """Scores [m, classes] of one model for all; classes without training rows are far below the others."""
    scores = np.full((other.shape[0], classes), -1e3, np.float32)
    there = np.unique(targets)
    if len(there) == 1:
        scores[:, there] = 1e3
        return scores
    found = _logistic().fit(train, targets).decision_function(other)
    scores[:, there] = np.stack([-found, found], axis=1) if len(there) == 2 else found
    return scores


def _one_label(train: Block, holds: NDArray[np.bool_], other: Block, dense: bool, cost: float, seed: int) -> Array:
    """Scores [m] of one label against the rest; a label that all or no training rows have is constant."""
    from sklearn.svm import LinearSVC

    if holds.all() or not holds.any():
        return np.full(other.shape[0], 1e3 if holds.all() else -1e3, np.float32)
    machine = _logistic() if dense else LinearSVC(C=cost, random_state=seed)
    return machine.fit(train, holds).decision_function(other).astype(np.float32)
