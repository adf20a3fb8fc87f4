"""The loss scale of an fp16 run under plain torch and DDP; under ZeRO, DeepSpeed has its own.

Not torch's `GradScaler`: that one cannot keep a static scale, and it looks for overflow parameter by parameter where
the gradient norm, which a step needs anyway, tells it for all at once.
"""

from __future__ import annotations

from typing import Any

from lmrecipes.recipe_precision import LossScaling, Precision

GROWTH = 2.0
"""Factor of a dynamic scale, up and down: a power of two rounds no gradient (Micikevicius et al. 2018, arXiv
1710.03740, section 3.2)."""
SMALLEST = 1.0


class LossScale:
    """`value` multiplies the loss before the backward pass; gradients are divided by it before they are used."""

    def __init__(self, scaling: LossScaling) -> None:
        self.scaling = scaling
        self.value = scaling.initial
        self.good_steps = 0

    @classmethod
    def of(cls, precision: Precision) -> LossScale | None:
        """The scale of a run, None where it needs none."""
        return cls(precision.loss_scaling) if precision.scales_loss else None

    def update(self, overflow: bool) -> None:
        """After each step. overflow: its gradients were not finite."""
        if self.scaling.kind == "static":
            return
        self.good_steps = 0 if overflow else self.good_steps + 1
        if overflow:
            self.value = max(self.value / GROWTH, SMALLEST)
        elif self.good_steps == self.scaling.growth_interval:
            self.value, self.good_steps = self.value * GROWTH, 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"value": self.value, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what `state_dict` gave."""
        self.value, self.good_steps = float(state["value"]), int(state["good_steps"])
