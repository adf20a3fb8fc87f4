"""How a global batch becomes micro-batches: the one place where accumulation is derived."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """A step's batch on `world_size` ranks: each computes `accumulation` micro-batches of at most `micro_examples`."""

    examples: int
    world_size: int
    accumulation: int
    micro_examples: int

    def __str__(self) -> str:
        return (
            f"{self.examples} examples a step = {self.world_size} rank(s) x {self.accumulation} micro-batch(es) "
            f"of at most {self.micro_examples}"
        )


def plan_batch(examples: int, micro_examples: int, world_size: int) -> BatchPlan:
    """Fewest micro-batches such that none exceeds `micro_examples`; the last ones of a step may be smaller or empty."""
    accumulation = math.ceil(examples / (world_size * micro_examples))
    return BatchPlan(examples, world_size, accumulation, math.ceil(examples / (world_size * accumulation)))
