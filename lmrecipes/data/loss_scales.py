"""How the losses of a step's tasks add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LossScales:
    """Factor of each task's mean loss in the step's loss. pooled: tasks whose supervised elements share one mean."""

    own: Mapping[str, float]
    pooled: frozenset[str] = frozenset()

    def factors(self, elements: Mapping[str, int]) -> dict[str, float]:
        """The factors in a step with so many supervised elements of each task: a pooled task's mean counts by its share
        of the elements."""
        together = sum(elements[name] for name in self.pooled)
        return {
            name: own * elements[name] / together if name in self.pooled and together else own
            for name, own in self.own.items()
        }
