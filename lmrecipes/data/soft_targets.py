"""What a teacher says of the training rows of a task, by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmrecipes.models.distillation import Soft


@dataclass(frozen=True)
class SoftTargets:
    """rows: those that the teacher was asked about, ascending, int64 [n], row 0 among them. values: what it said, fp32
    [n] or [n, outputs], as the student's head says it. weight, temperature: see `Distillation`."""

    rows: NDArray[np.int64]
    values: NDArray[Any]
    weight: float
    temperature: float

    def of(self, rows: NDArray[np.int64]) -> Soft:
        """What was said of these rows, which the teacher was asked about, [k]; of row 0 where there are none."""
        places = np.searchsorted(self.rows, rows if len(rows) else np.zeros(1, np.int64))
        return Soft(torch.from_numpy(self.values[places]), self.weight, self.temperature)
