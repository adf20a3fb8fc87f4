"""Formats over the steps of a run: what the recipe changes when, and which layers are raised because their numbers do
not fit.

Decisions depend on the recipe, the step and statistics summed over all ranks, so that every rank takes them alike, and
a resumed run takes those of the uninterrupted one. They hold from the next step on. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from lmrecipes.precision.formats import HIGHER, TENSORS
from lmrecipes.precision.plan import layer_formats
from lmrecipes.recipe_precision import LayerFormat, Precision

BY_RECIPE = "precision.changes"
"""The reason for what the recipe itself changes."""


@dataclass(frozen=True)
class Switch:
    """A layer computes in another format from the step after `step` on."""

    step: int
    layer: str
    was: LayerFormat
    to: LayerFormat
    reason: str

    @property
    def raised(self) -> bool:
        """Whether its numbers did not fit, rather than that the recipe changes it."""
        return self.reason != BY_RECIPE

    def as_row(self) -> dict[str, Any]:
        """A line of `precision.jsonl`."""
        return {"step": self.step, "layer": self.layer, "from": self.was, "to": self.to, "reason": self.reason}


@dataclass
class Memory:
    """What the next decisions depend on; its fields are JSON-ready and saved in checkpoints.

    raised: product -> its lowest format from now on. overflows: product -> measured steps in its present format that
    overflowed. streaks: product -> measurements in a row whose share of lost values was too large.
    """

    raised: dict[str, LayerFormat] = field(default_factory=dict)
    overflows: dict[str, int] = field(default_factory=dict)
    streaks: dict[str, int] = field(default_factory=dict)


class Control:
    """names: of all modules; products: those of them that multiply with weights, in the order of the statistics."""

    def __init__(self, precision: Precision, steps: int, names: Sequence[str], products: Sequence[str]) -> None:
        self.precision, self.steps = precision, steps
        self.names, self.products = list(names), list(products)
        self.memory = Memory()

    def formats_at(self, done: int) -> dict[str, LayerFormat]:
        """Every module's format in the step after `done` steps, as far as layers have been raised by now."""
        return layer_formats(self.precision, self.names, done / self.steps, self.memory.raised)

    def measures(self, number: int, after_skip: bool = False) -> bool:
        """Whether the step numbered `number` (from 1) is measured; the step after a skipped one always is, since it may
        be the last before the run stops."""
        raising = self.precision.raising
        return raising.on and (after_skip or number % raising.every == 0)

    def decide(self, step: int, statistics: NDArray[np.float64] | None = None) -> list[Switch]:
        """What changes after `step` steps. statistics: of this step where it was measured, [products, 3, 3] as
        TENSORS and COUNTS of formats.py say, summed over ranks."""
        if statistics is None and self._passed(step) == self._passed(step - 1):
            return []
        before, reasons = self.formats_at(step - 1), {}
        if statistics is not None:
            for layer, counts in zip(self.products, statistics, strict=True):
                if (reason := self._too_low(layer, before[layer], counts)) is not None:
                    reasons[layer] = reason
                    higher = HIGHER[before[layer]] if self.precision.raising.to == "next" else "fp32"
                    self.memory.raised[layer] = cast(LayerFormat, higher)
        now = self.formats_at(step)
        switches = [
            Switch(step, layer, before[layer], now[layer], reasons.get(layer, BY_RECIPE))
            for layer in self.products
            if before[layer] != now[layer]
        ]
        for switch in switches:
            self.memory.overflows.pop(switch.layer, None)
            self.memory.streaks.pop(switch.layer, None)
        return switches

    def rules_from(self, step: int) -> Mapping[str, LayerFormat]:
        """Rules of the recipe that begin to hold after `step` steps."""
        return {
            pattern: to
            for change in self.precision.changes[self._passed(step - 1) if step else 0 : self._passed(step)]
            for pattern, to in change.layers.items()
        }

    def state(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self.memory)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.memory = Memory(**{name: dict(value) for name, value in state.items()})

    def _passed(self, done: int) -> int:
        """Changes that are in force after `done` steps."""
        return sum(change.at <= done / self.steps for change in self.precision.changes)

    def _too_low(self, layer: str, used: LayerFormat, counts: NDArray[np.float64]) -> str | None:
        """Count a measurement of a layer; the reason to raise it, or None."""
        if used == "fp32" or not counts[:, 0].any():
            return None
        raising, memory = self.precision.raising, self.memory
        values, underflown, overflown = counts.T
        shares = underflown / np.maximum(values, 1)
        worst = int(shares.argmax())
        streak = (memory.streaks.pop(layer, 0) + 1) * bool(shares[worst] > raising.underflow)
        if streak:
            memory.streaks[layer] = streak
        if overflown.any():
            memory.overflows[layer] = memory.overflows.get(layer, 0) + 1
        if raising.overflows and memory.overflows.get(layer, 0) >= raising.overflows:
            most = int((overflown / np.maximum(values, 1)).argmax())
            return f"its {TENSORS[most]}s overflowed in {memory.overflows[layer]} measured steps"
        if streak >= raising.streak:
            return f"{shares[worst]:.1%} of its {TENSORS[worst]}s were lost as zeros, {streak} measurements in a row"
        return None
