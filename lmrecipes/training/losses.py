"""What a task's loss is measured in, and how much it counts in the total."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lmrecipes.data.batches import MicroBatch
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.loss_scales import LossScales
from lmrecipes.models.heads import HeadSpec, head_spec
from lmrecipes.recipe import Recipe


def head_specs(tasks: Mapping[str, EncodedTask]) -> dict[str, HeadSpec]:
    """The head of each task, from its training targets; of a task with a loss per token only what its loss means."""
    return {
        name: HeadSpec(task.task.kind, (), (), task.unigram or 1.0)
        if task.unigram is not None
        else head_spec(task.task.kind, task.labels, task.train.targets, task.task.loss)
        for name, task in tasks.items()
    }


def loss_scales(recipe: Recipe, specs: Mapping[str, HeadSpec]) -> LossScales:
    """Factor of each task's mean loss in the total."""
    units = loss_units(recipe, specs)
    return LossScales({name: recipe.tasks[name].loss_factor / unit for name, unit in units.items()}, _pooled(recipe))


def loss_units(recipe: Recipe, specs: Mapping[str, HeadSpec]) -> dict[str, float]:
    """What a normalised loss of 1 is in each task's own units. Tasks that share one mean share the unit."""
    if recipe.loss_normalization == "none":
        return dict.fromkeys(specs, 1.0)
    units = {name: spec.constant_loss for name, spec in specs.items()}
    pooled = _pooled(recipe)
    return units | dict.fromkeys(pooled, sum(units[name] for name in pooled) / max(1, len(pooled)))


def _pooled(recipe: Recipe) -> frozenset[str]:
    if recipe.token_loss == "per_task":
        return frozenset()
    return frozenset(name for name, task in recipe.tasks.items() if task.of_tokens)


def weighted(micro: MicroBatch, factors: dict[str, float]) -> MicroBatch:
    """The micro-batch with each task's part of the loss multiplied by its factor."""
    return replace(
        micro, tasks={name: replace(rows, scale=rows.scale * factors[name]) for name, rows in micro.tasks.items()}
    )
