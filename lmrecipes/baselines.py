"""What a bag of words reaches on a task: the number that a fine-tuned model must be compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmrecipes.recipe import TaskKind

Array = NDArray[Any]

RIDGE_PENALTY = 2.0
SVM_COST = {"classification": 0.3, "multi_label": 1.0}
"""Best of a grid in steps of about 3 on the offline data sets' validation splits; the ridge is flat from 1 to 4."""
RARE_ROWS = 1000
"""From this many rows on, a feature of a single row is left out."""


def tfidf_linear(
    kind: TaskKind, train_texts: list[str], train_targets: Array, texts: list[str], classes: int, seed: int
) -> Array:
    """Predictions of a linear model on TF-IDF features, trained on all given rows; float32.

    Features: 1-2-grams of words (sublinear term frequency) and 3-5-grams of characters within words; on the offline
    data sets the characters add 0.01 to 0.02 to the headline metric. Models: ridge regression, or a linear
    support-vector machine of each class against the rest, whose threshold of 0 needs no tuning where labels are rare.

    train_targets: float [n] (regression), int [n] (classification), 0/1 [n, classes] (multi_label).
    Returns [m] (regression), or scores [m, classes]: the largest is the class, above 0 the label holds. A class without
    training rows never wins.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    rarest = 2 if len(train_texts) >= RARE_ROWS else 1
    words = {"ngram_range": (1, 2), "token_pattern": r"(?u)\w+|[^\w\s]+", "min_df": rarest}
    characters = {"ngram_range": (3, 5), "analyzer": "char_wb", "min_df": 2 * rarest - 1}
    features = make_union(*(TfidfVectorizer(sublinear_tf=True, dtype=np.float32, **o) for o in (words, characters)))
    train, other = features.fit_transform(train_texts), features.transform(texts)
    targets = np.asarray(train_targets)
    if kind == "regression":
        from sklearn.linear_model import Ridge

        ridge = Ridge(RIDGE_PENALTY, solver="sparse_cg", random_state=seed).fit(train, targets)
        return ridge.predict(other).astype(np.float32)
    if kind == "classification":
        targets = targets[:, None] == np.arange(classes)
    return np.stack([_one_label(train, targets[:, c] > 0, other, SVM_COST[kind], seed) for c in range(classes)], axis=1)


def _one_label(train: Any, holds: NDArray[np.bool_], other: Any, cost: float, seed: int) -> Array:
    """Scores [m] of one label against the rest; a label that all or no training rows have is constant."""
    from sklearn.svm import LinearSVC

    if holds.all() or not holds.any():
        return np.full(other.shape[0], 1e3 if holds.all() else -1e3, np.float32)
    machine = LinearSVC(C=cost, random_state=seed).fit(train, holds)
    return machine.decision_function(other).astype(np.float32)
