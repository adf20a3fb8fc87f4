"""Metrics of a task from all its predictions, in fp64, by torchmetrics; and its mean loss.

Of a task of tokens: predictions are fp64 [n, 2], for each text the sum of its tokens' negative log-likelihoods in nats
and how many of them were predicted right; targets are int64 [n, 2], its predicted tokens and the bytes of their text.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lmrecipes.models.heads import HeadSpec


def task_metrics(
    names: tuple[str, ...], spec: HeadSpec, predictions: NDArray[Any], targets: NDArray[Any]
) -> dict[str, float]:
    """The named metrics. predictions: [n] (regression) or logits [n, outputs]; targets: [n] or 0/1 [n, outputs].

    A correlation is NaN where predictions or targets are constant. A perplexity beyond fp64 (a loss above 709) is
    infinite. Of tokens: see the top of this module.
    """
    found, truth = _tensors(predictions, targets)
    compute = {
        "regression": _regression,
        "classification": _classification,
        "multi_label": _multi_label,
        "language_modelling": _tokens,
        "chat": _tokens,
    }[spec.kind]
    return {name: float(compute(name, found, truth, spec.outputs)) for name in names}


def mean_loss(spec: HeadSpec, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean loss per supervised element, in the task's own units; of tokens, in nats per token."""
    found, truth = _tensors(predictions, targets)
    if spec.of_tokens:
        return float(_nats_per_token(found, truth))
    if spec.one_hot:
        truth = F.one_hot(truth.long(), spec.outputs).double()
    elif spec.kind == "classification":
        return float(F.cross_entropy(found, truth.long()))
    if spec.kind == "regression" or spec.loss == "mean_squared_error":
        return float(F.mse_loss(found, truth))
    return float(F.binary_cross_entropy_with_logits(found, truth))


def _tensors(predictions: NDArray[Any], targets: NDArray[Any]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.array(predictions, np.float64)), torch.from_numpy(np.array(targets, np.float64))


def _regression(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    from torchmetrics.functional import regression

    if name in ("spearman", "pearson"):
        if len(found) < 2 or found.min() == found.max() or truth.min() == truth.max():
            return torch.tensor(torch.nan)
        if name == "spearman":  # torchmetrics sums the ranks of ties in int32: wrong from some 100,000 rows on
            found, truth = _ranks(found), _ranks(truth)
        value: Tensor = regression.pearson_corrcoef(found, truth)
        return value
    compute = {
        "mean_squared_error": regression.mean_squared_error,
        "mean_absolute_error": regression.mean_absolute_error,
    }[name]
    value = compute(found, truth)
    return value


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value, fp64 [n]; equal values share the mean of theirs."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[inverse]


def _classification(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    from torchmetrics.functional import classification

    chosen, classes = found.argmax(-1), truth.long()
    if name == "balanced_accuracy":  # mean over the classes that occur; torchmetrics' macro adds those predicted only
        recall = classification.multiclass_recall(chosen, classes, num_classes=outputs, average="none")
        value: Tensor = recall[classes.unique()].mean()
        return value
    metric, average = {
        "accuracy": (classification.multiclass_accuracy, "micro"),
        "macro_f1": (classification.multiclass_f1_score, "macro"),
    }[name]
    value = metric(chosen, classes, num_classes=outputs, average=average)
    return value


def _multi_label(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    from torchmetrics.functional import classification

    # torchmetrics' multilabel functions refuse a single label; each label, and all cells together, are binary.
    truth = truth.long()
    if name == "average_precision":  # of ranks: the sigmoids of large scores would all round to 1
        ranks = _ranks(found.flatten())
        value: Tensor = classification.binary_average_precision(ranks / len(ranks), truth.flatten())
        return value
    holds = (found > 0).long()
    parts = [(holds.flatten(), truth.flatten())] if name == "micro_f1" else list(zip(holds.T, truth.T, strict=True))
    return torch.stack([classification.binary_f1_score(*part) for part in parts]).mean()


def _tokens(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    """Of all texts together, so that neither where texts are cut nor their order matters.

    Bits per byte do not depend on the tokenizer either (arXiv 2101.00027, section 3.1).
    """
    if name == "perplexity":
        return _nats_per_token(found, truth).exp()
    if name == "bits_per_byte":
        return found[:, 0].sum() / (math.log(2) * truth[:, 1].sum())
    return found[:, 1].sum() / truth[:, 0].sum()


def _nats_per_token(found: Tensor, truth: Tensor) -> Tensor:
    return found[:, 0].sum() / truth[:, 0].sum()
