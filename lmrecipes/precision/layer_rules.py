"""Whether a recipe's rules of layers fit its model, before anything runs: the model is built without numbers."""

from __future__ import annotations

from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.shapes import inputs_on_meta, on_meta
from lmrecipes.precision.layers import canonical, problems_of
from lmrecipes.precision.plan import unmatched
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe
from lmrecipes.recipe_precision import Precision, Raising


def layer_problems(recipe: Recipe) -> list[Problem]:
    """What `install` would refuse wherever the run takes place: patterns that match nothing or no product, a
    language-model head in fp8. Nothing is fetched but the model's configuration."""
    if not recipe.precision.by_layer:
        return []
    try:
        return problems_of(_without_numbers(recipe), recipe.precision)
    except InputError as error:
        return error.problems


def fitting(recipe: Recipe) -> Precision:
    """The recipe's precision without rules of layers that its model does not have. Raises InputError where the model
    is not known."""
    precision = recipe.precision
    if not precision.by_layer:
        return precision
    lost = unmatched(precision, list(canonical(_without_numbers(recipe))))
    layers = {pattern: format for pattern, format in precision.layers.items() if pattern not in lost}
    changes = []
    for change in precision.changes:
        if rules := {pattern: format for pattern, format in change.layers.items() if pattern not in lost}:
            changes.append(change.model_copy(update={"layers": rules}))
    raising = precision.raising if layers or changes else Raising()
    return precision.model_copy(update={"layers": layers, "changes": tuple(changes), "raising": raising})


def _without_numbers(recipe: Recipe) -> MultiTaskModel:
    specs = {name: HeadSpec(task.kind, ("",), (0.0,), 1.0) for name, task in recipe.tasks.items()}
    trunk = on_meta(recipe.model, language=any(task.of_tokens for task in recipe.tasks.values()))
    return MultiTaskModel(trunk, specs, inputs_on_meta(recipe, trunk))
