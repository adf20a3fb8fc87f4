"""Heads and their losses: what each kind of task adds to the trunk.

Every head starts as the best constant predictor of its training data (zero weights, bias at the prior), so that with
`loss_normalization: constant_predictor` every task's loss starts at exactly 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lmrecipes.data.arrays import CHUNK
from lmrecipes.models.distillation import Soft, soft_loss_sum
from lmrecipes.recipe import TOKEN_KINDS, TaskKind, TaskLoss


@dataclass(frozen=True)
class HeadSpec:
    """All that a head needs besides its weights; saved with an exported model.

    prior: bias at the start, [outputs]. constant_loss: loss of that constant prediction on the training data, in the
    task's own units (nats; for regression the variance). A regression head predicts (target - mean) / std. loss: of a
    classification head, see `Task.loss`; auto is the kind's own.
    """

    kind: TaskKind
    labels: tuple[str, ...]
    prior: tuple[float, ...]
    constant_loss: float
    mean: float = 0.0
    std: float = 1.0
    loss: TaskLoss = "auto"

    @property
    def outputs(self) -> int:
        """Width of the head."""
        return len(self.prior)

    @property
    def of_tokens(self) -> bool:
        """Whether the task has no head of its own, but the language-model head and a loss per token."""
        return self.kind in TOKEN_KINDS

    def elements(self, examples: int) -> int:
        """Supervised elements in so many examples with labels: the denominator of the task's loss."""
        return examples * (self.outputs if self.kind == "multi_label" or self.one_hot else 1)

    @property
    def one_hot(self) -> bool:
        """Whether each output of a classification head has a loss of its own: against 1 for the class, 0 for others."""
        return self.loss in ("binary_cross_entropy", "mean_squared_error")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> HeadSpec:
        """Inverse of `as_dict`."""
        return cls(**{**saved, "labels": tuple(saved["labels"]), "prior": tuple(saved["prior"])})


def head_spec(kind: TaskKind, labels: tuple[str, ...], targets: NDArray[Any], loss: TaskLoss = "auto") -> HeadSpec:
    """The head of a task from its training targets (float [n], int [n] or 0/1 [n, labels]).

    Priors have one pseudo-count per class, so that a class without training rows keeps a finite bias; a mean squared
    error needs none.
    """
    n = len(targets)
    step = max(1, CHUNK // max(1, len(labels) if kind == "multi_label" else 1))
    chunks = [slice(start, start + step) for start in range(0, n, step)]  # of targets in mapped memory
    if kind == "regression":
        mean, variance = _moments(targets[chunk].astype(np.float64) for chunk in chunks)
        std = math.sqrt(variance)
        return HeadSpec(kind, labels, (0.0,), variance or 1.0, mean, std or 1.0)
    if kind == "classification":
        counts = np.zeros(len(labels))
        for chunk in chunks:
            counts += np.bincount(targets[chunk], minlength=len(labels))
        if loss == "mean_squared_error":
            share = counts / n
            return HeadSpec(kind, labels, tuple(share.tolist()), float((share * (1 - share)).mean()) or 1.0, loss=loss)
        if loss == "binary_cross_entropy":
            return HeadSpec(kind, labels, *_each_against_the_rest(counts, n), loss=loss)
        prior = (counts + 1) / (n + len(labels))
        return HeadSpec(kind, labels, tuple(np.log(prior).tolist()), float(-(counts / n) @ np.log(prior)) or 1.0)
    positives = np.zeros(len(labels))
    for chunk in chunks:
        positives += targets[chunk].sum(axis=0, dtype=np.float64)
    return HeadSpec(kind, labels, *_each_against_the_rest(positives, n))


def _each_against_the_rest(positives: NDArray[np.float64], n: int) -> tuple[tuple[float, ...], float]:
    """Prior logits of labels that hold in so many of n rows, and the mean binary cross-entropy of these."""
    share = (positives + 1) / (n + 2)
    loss = -(positives / n * np.log(share) + (1 - positives / n) * np.log1p(-share))
    return tuple((np.log(share) - np.log1p(-share)).tolist()), float(loss.mean())


def _moments(parts: Iterable[NDArray[np.float64]]) -> tuple[float, float]:
    """Mean and variance of numbers in parts (Chan, Golub and LeVeque 1983, eq. 2.1); exactly 0 where all are equal."""
    count, mean, squares = 0, 0.0, 0.0
    lowest, highest = math.inf, -math.inf
    for part in parts:
        apart = float(part.mean()) - mean
        squares += float(part.var()) * len(part) + apart**2 * count * len(part) / (count + len(part))
        count += len(part)
        mean += apart * len(part) / count
        lowest, highest = min(lowest, float(part.min())), max(highest, float(part.max()))
    return mean, squares / count if highest > lowest else 0.0  # rounding gives equal values a deviation of 1e-17


class Head(nn.Module):
    """A linear head on the pooled [rows, hidden] output."""

    def __init__(self, hidden: int, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.linear = nn.Linear(hidden, spec.outputs)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.copy_(torch.tensor(spec.prior))

    def forward(self, pooled: Tensor) -> Tensor:
        """[rows, hidden] -> [rows, outputs] in fp32."""
        out: Tensor = self.linear(pooled)
        return out.float()

    def loss_sum(self, outputs: Tensor, targets: Tensor, soft: Soft | None = None) -> Tensor:
        """Sum of the loss over all supervised elements, in the task's own units, fp32 []. soft: what a teacher says of
        the rows, whose part in the loss is its weight."""
        of_labels = self._labels_loss_sum(outputs, targets)
        if soft is None:
            return of_labels
        return (1 - soft.weight) * of_labels + soft.weight * soft_loss_sum(self.spec, outputs, soft)

    def _labels_loss_sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.spec.kind == "regression":
            errors = outputs[:, 0] - (targets - self.spec.mean) / self.spec.std
            return errors.square().sum() * self.spec.std**2
        if self.spec.one_hot:
            targets = F.one_hot(targets.long(), self.spec.outputs)
        elif self.spec.kind == "classification":
            return F.cross_entropy(outputs, targets.long(), reduction="sum")
        if self.spec.loss == "mean_squared_error":
            return F.mse_loss(outputs, targets.float(), reduction="sum")
        return F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="sum")

    def predictions(self, outputs: Tensor) -> Tensor:
        """regression: [rows] in the target's units; else logits [rows, outputs], or for classification by mean squared
        error each class's estimated probability. The class is the largest output whatever the loss."""
        return outputs[:, 0] * self.spec.std + self.spec.mean if self.spec.kind == "regression" else outputs
