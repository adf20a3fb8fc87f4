"""Whether a recipe's rules of layers fit its model, before anything runs: the model is built without numbers."""

from __future__ import annotations

from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.shapes import inputs_on_meta, on_meta
from lmrecipes.precision.layers import problems_of
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe


def layer_problems(recipe: Recipe) -> list[Problem]:
    """What `install` would refuse wherever the run takes place: patterns that match nothing or no product, a
    language-model head in fp8. Nothing is fetched but the model's configuration."""
    if not recipe.precision.by_layer:
        return []
    specs = {name: HeadSpec(task.kind, ("",), (0.0,), 1.0) for name, task in recipe.tasks.items()}
    try:
        trunk = on_meta(recipe.model, language=any(task.of_tokens for task in recipe.tasks.values()))
        return problems_of(MultiTaskModel(trunk, specs, inputs_on_meta(recipe, trunk)), recipe.precision)
    except InputError as error:
        return error.problems
