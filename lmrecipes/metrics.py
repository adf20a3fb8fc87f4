"""Metrics of a task from all its predictions, by torchmetrics; and its mean loss."""

from __future__ import annotations

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
    """The named metrics. predictions: [n] (regression) or logits [n, outputs]; targets: [n] or 0/1 [n, outputs]."""
    found, truth = torch.from_numpy(np.asarray(predictions, np.float32)), torch.from_numpy(np.array(targets))
    compute = {"regression": _regression, "classification": _classification, "multi_label": _multi_label}[spec.kind]
    return {name: float(compute(name, found, truth, spec.outputs)) for name in names}


def mean_loss(spec: HeadSpec, predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    """Mean loss per supervised element, in the task's own units."""
    found, truth = torch.from_numpy(np.asarray(predictions, np.float32)), torch.from_numpy(np.array(targets))
    if spec.kind == "regression":
        return float(F.mse_loss(found, truth.float()))
    if spec.kind == "classification":
        return float(F.cross_entropy(found, truth.long()))
    return float(F.binary_cross_entropy_with_logits(found, truth.float()))


def _regression(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    from torchmetrics.functional import regression

    compute = {
        "spearman": regression.spearman_corrcoef,
        "pearson": regression.pearson_corrcoef,
        "mean_squared_error": regression.mean_squared_error,
        "mean_absolute_error": regression.mean_absolute_error,
    }[name]
    value: Tensor = compute(found, truth.float())
    return value


def _classification(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    from torchmetrics.functional import classification

    metric, average = {
        "accuracy": (classification.multiclass_accuracy, "micro"),
        "balanced_accuracy": (classification.multiclass_accuracy, "macro"),
        "macro_f1": (classification.multiclass_f1_score, "macro"),
    }[name]
    value: Tensor = metric(found.argmax(-1), truth.long(), num_classes=outputs, average=average)
    return value


def _multi_label(name: str, found: Tensor, truth: Tensor, outputs: int) -> Tensor:
    from torchmetrics.functional import classification

    metric, average = {
        "micro_f1": (classification.multilabel_f1_score, "micro"),
        "macro_f1": (classification.multilabel_f1_score, "macro"),
        "average_precision": (classification.multilabel_average_precision, "micro"),
    }[name]
    value: Tensor = metric(torch.sigmoid(found), truth.long(), num_labels=outputs, average=average)
    return value
