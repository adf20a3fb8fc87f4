"""What a task's loss is measured in, and how much it counts in the total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lmrecipes.data.batches import MicroBatch
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.models.heads import HeadSpec, head_spec
from lmrecipes.recipe import Recipe


def head_specs(tasks: Mapping[str, EncodedTask]) -> dict[str, HeadSpec]:
    """The head of each task, from its training targets."""
    return {name: head_spec(task.task.kind, task.labels, task.train.targets) for name, task in tasks.items()}


def loss_scales(recipe: Recipe, specs: dict[str, HeadSpec]) -> dict[str, float]:
    """Factor of each task's mean loss in the total."""
    return {name: recipe.tasks[name].loss_factor / unit for name, unit in loss_units(recipe, specs).items()}


def loss_units(recipe: Recipe, specs: dict[str, HeadSpec]) -> dict[str, float]:
    """What a normalised loss of 1 is in each task's own units."""
    normalize = recipe.loss_normalization == "constant_predictor"
    return {name: spec.constant_loss if normalize else 1.0 for name, spec in specs.items()}


def weighted(micro: MicroBatch, factors: dict[str, float]) -> MicroBatch:
    """The micro-batch with each task's part of the loss multiplied by its factor."""
    return replace(
        micro, tasks={name: replace(rows, scale=rows.scale * factors[name]) for name, rows in micro.tasks.items()}
    )
