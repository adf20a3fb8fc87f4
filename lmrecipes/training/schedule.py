"""The learning rate as a pure function of the step: nothing to save, nothing to step out of turn."""

from __future__ import annotations

import math

from lmrecipes.recipe import Schedule


def learning_rate(schedule: Schedule, peak: float, step: int) -> float:
    """Rate of step `step` (from 0): linear warm-up to `peak`, then linear or cosine decay to its `final_fraction`."""
    warmup = round(schedule.steps * schedule.warmup_fraction)
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.decay == "constant":
        return peak
    done = (step - warmup) / max(1, schedule.steps - warmup)
    shape = 1 - done if schedule.decay == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)
