"""Learning rates as pure functions of the step: nothing to save, nothing to step out of turn."""

from __future__ import annotations

import math

from lmrecipes.models.inputs import modalities_of
from lmrecipes.recipe import Rates, Recipe, Schedule

TRUNK = "trunk"
"""Owner of the trunk's parameters and of its language-model head's."""
Owned = dict[str, tuple[float, Rates]]


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


def owners(recipe: Recipe) -> Owned:
    """The parts of a model that have a learning rate, by name: `trunk`, `heads.TASK`, `inputs.MODALITY` and, of a
    pretrained front end, `inputs.MODALITY.encoder`; each with its factor on the trunk's peak and its shape."""
    found = {TRUNK: (1.0, Rates())}
    for name, task in recipe.tasks.items():
        if not task.of_tokens:
            found[f"heads.{name}"] = task.learning_rate_factor, task.rates
    for modality in modalities_of(recipe):
        front_end = getattr(recipe.model, modality)
        found[f"inputs.{modality}"] = front_end.learning_rate_factor, front_end.rates
        if front_end.pretrained is not None:
            found[f"inputs.{modality}.encoder"] = front_end.encoder_rate_factor, front_end.rates
    return found


def owner_of(parameter: str) -> str:
    """The part of the model that a parameter, by its name in it, belongs to."""
    parts = parameter.split(".")
    if parts[0] not in ("heads", "inputs"):
        return TRUNK
    return ".".join(parts[: 3 if parts[0] == "inputs" and parts[2] == "encoder" else 2])


def rates(recipe: Recipe, step: int) -> dict[str, float]:
    """Learning rate of every part in step `step` (from 0)."""
    peak, schedule = recipe.optimizer.lr, recipe.schedule
    return {name: _rate(own, schedule, peak * factor, step) for name, (factor, own) in owners(recipe).items()}


def rates_beside(recipe: Recipe, rate: float) -> dict[str, float]:
    """Learning rate of every part where the trunk learns at `rate` and all are equally far from their peaks."""
    return {name: rate * factor for name, (factor, _) in owners(recipe).items()}


def rate_metrics(recipe: Recipe, found: dict[str, float]) -> dict[str, float]:
    """`lr` of the trunk, and `lr/<owner>` of the parts that have a shape of their own."""
    shaped = {f"lr/{name}": found[name] for name, (_, own) in owners(recipe).items() if own.decay != "schedule"}
    return {"lr": found[TRUNK], **shaped}


def _rate(own: Rates, schedule: Schedule, peak: float, step: int) -> float:
    if own.decay == "schedule":
        return learning_rate(schedule, peak, step)
    start = round(schedule.steps * own.start)
    if step < start:
        return 0.0
    after = Schedule(
        steps=schedule.steps - start, warmup_fraction=own.warmup_fraction, decay=own.decay,
        final_fraction=own.final_fraction,
    )  # fmt: skip
    return learning_rate(after, peak, step - start)
