"""What a teacher adds to a task's loss: how far the student is from what the teacher said of the same rows.

Cross-entropies become Kullback-Leibler divergences at a temperature T, times T^2, so that the size of their gradients
does not depend on it (Hinton, Vinyals and Dean 2015, arXiv 1503.02531, section 2); squared errors are of the teacher's
numbers. Sums run over the same elements as the labels' loss, so that both have one denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from lmrecipes.models.heads import HeadSpec


@dataclass
class Soft:
    """values: the teacher's, of one task's rows in a micro-batch, as `Head.predictions` gives them, fp32 [k] or
    [k, outputs]. weight: share of the teacher in the loss."""

    values: Tensor
    weight: float
    temperature: float

    def to(self, device: torch.device) -> Soft:
        """The same on a device."""
        return Soft(self.values.to(device, non_blocking=True), self.weight, self.temperature)


def soft_loss_sum(spec: HeadSpec, outputs: Tensor, soft: Soft) -> Tensor:
    """Sum over all supervised elements of the distance to the teacher, in the task's own units, fp32 [].

    outputs: the student's head, [k, outputs]. It is 0, and its gradient too, where the student says what the teacher
    says.
    """
    values, temperature = soft.values, soft.temperature
    if spec.kind == "regression":
        return (outputs[:, 0] - (values - spec.mean) / spec.std).square().sum() * spec.std**2
    if spec.loss == "mean_squared_error":
        return F.mse_loss(outputs, values, reduction="sum")
    teacher, student = values / temperature, outputs / temperature
    if spec.kind == "multi_label" or spec.one_hot:
        holds = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
        fails = (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return (holds + fails).sum() * temperature**2
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="sum", log_target=True)
    return divergence * temperature**2
