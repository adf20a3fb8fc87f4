"""Losses of each task, averaged over a round of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

LEAST = 1e-3
"""A loss below this counts as this: the methods divide by losses and take their logarithm, and a task that is solved
to a thousandth of the constant predictor's loss should not drown the others."""


class Mean(NamedTuple):
    """A mean loss, and of how many supervised elements."""

    value: float
    elements: int


@dataclass
class Round:
    """Sums of losses so far, by task; its fields are JSON-ready and saved in checkpoints."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, losses: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """One step's mean losses, of the tasks that it held, and of how many elements each is the mean."""
        for task, loss in losses.items():
            self.sums[task] = self.sums.get(task, 0.0) + loss * counts[task]
            self.counts[task] = self.counts.get(task, 0) + counts[task]

    def close(self) -> dict[str, Mean]:
        """The means, at least LEAST; the next round begins."""
        means = {task: Mean(max(self.sums[task] / n, LEAST), n) for task, n in self.counts.items()}
        self.sums, self.counts = {}, {}
        return means
