"""Weights: what a recipe's laws, units, caps and schedule mean in integers, before anything runs. Pure Python.

The stages of a run: from which sample on, by which integer weights the tasks are drawn. Laws multiply the tasks'
weights by a function of their sizes, in the mixture's unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lmrecipes.data.interleave import Stage, integer_weights
from lmrecipes.data.mixture import Mixture, Supply
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Recipe, Waypoint

MOST_PIECES = 200
"""Stages that stand for a straight line between two waypoints."""

Supplies = Mapping[str, Supply]


def build_mixture(recipe: Recipe, supplies: Supplies) -> Mixture:
    """The stream of a recipe over tasks with these supplies. Raises InputError where they cannot fill the run."""
    tasks = list(recipe.tasks)
    drawn = recipe.schedule.steps * recipe.batch.examples
    _check_sizes(recipe, supplies)
    _check_caps(recipe, supplies, drawn)
    in_order = [supplies[task] for task in tasks]
    mixture = Mixture(tasks, in_order, stages(recipe, supplies), recipe.seed, recipe.batch.examples)
    try:
        mixture.counts(drawn)
    except OverflowError as stop:
        raise InputError(_nothing_left(recipe, supplies, mixture.plan, int(stop.args[0]))) from None
    return mixture


def cap_of(recipe: Recipe, task: str, rows: int) -> int | None:
    """How often rows of a task may be drawn in the whole run."""
    epochs = _most_epochs(recipe, task)
    return None if epochs is None else max(1, math.floor(epochs * rows + 1e-9))


def stages(recipe: Recipe, supplies: Supplies) -> list[Stage]:
    """The stages of a recipe: one, or those of its schedule. Weights are integers in the order of the tasks."""
    base = {name: task.weight for name, task in recipe.tasks.items()}
    factors = _factors(recipe, supplies)
    steps = recipe.schedule.steps
    points = [*recipe.mixture.schedule]
    if not points or points[0].at > 0:
        points = [Waypoint(at=0, weights=base), *points]
    starts = [round(point.at * steps) for point in points]
    found: dict[int, dict[str, float]] = {}
    for number, (point, start) in enumerate(zip(points, starts, strict=True)):
        here = {**base, **point.weights}
        found[start] = here
        if recipe.mixture.between == "linear" and number + 1 < len(points):
            following, end = {**base, **points[number + 1].weights}, starts[number + 1]
            pieces = min(MOST_PIECES, end - start)
            for piece in range(pieces):
                part = (piece + 0.5) / pieces
                mixed = {task: (1 - part) * here[task] + part * following[task] for task in base}
                found[start + piece * (end - start) // pieces] = mixed
    made = [
        Stage(step * recipe.batch.examples, integer_weights([values[task] * factors[task] for task in base]))
        for step, values in sorted(found.items())
    ]
    return [stage for n, stage in enumerate(made) if n == 0 or stage.weights != made[n - 1].weights]


def _factors(recipe: Recipe, supplies: Supplies) -> dict[str, float]:
    """What the law multiplies each task's weight by."""
    mixture = recipe.mixture
    sizes = {task: supplies[task].total for task in recipe.tasks}
    law = mixture.resolved_law
    if law == "proportional":
        return {task: float(size) for task, size in sizes.items()}
    if law == "temperature":
        assert mixture.temperature is not None
        most, exponent = mixture.size_cap or math.inf, 1 / mixture.temperature
        return {task: min(size, most) ** exponent for task, size in sizes.items()}
    if law == "unimax":
        return _unimax(recipe, supplies)
    return dict.fromkeys(sizes, 1.0)


def _unimax(recipe: Recipe, supplies: Supplies) -> dict[str, float]:
    """Equal budgets, none above max_epochs passes (arXiv 2304.09151, algorithm 1), in the mixture's unit.

    The paper divides a budget of characters; here the run's number of examples is given, so that the common level of
    the budgets is the one at which min(level, cap) of each task, over its size per example, sum to that number.
    """
    drawn = recipe.schedule.steps * recipe.batch.examples
    mean = {task: supply.total / supply.rows for task, supply in supplies.items()}
    caps = {task: (supply.cap or math.inf) * mean[task] for task, supply in supplies.items()}
    level, left, open_tasks = 0.0, float(drawn), sorted(caps, key=lambda task: caps[task])
    while open_tasks:
        level = left / sum(1 / mean[task] for task in open_tasks)
        task = open_tasks[0]
        if caps[task] >= level:
            break
        left -= caps[task] / mean[task]
        open_tasks.pop(0)
    return {task: min(caps[task], level) if task in open_tasks else caps[task] for task in recipe.tasks}


def _check_sizes(recipe: Recipe, supplies: Supplies) -> None:
    """In tokens, a task without any cannot have a share of them; and part of a row cannot be drawn."""
    problems = [
        Problem(
            f"tasks.{task}",
            f"its {supplies[task].rows:,} rows hold no {recipe.mixture.unit.replace('_', ' ')} to have a share of",
            "check its source and max_length, or set mixture.unit to examples",
            "mixture-empty",
        )
        for task in recipe.tasks
        if supplies[task].total <= 0
    ]
    for name in recipe.tasks:
        epochs, rows = _most_epochs(recipe, name), supplies[name].rows
        if epochs is not None and epochs * rows + 1e-9 < 1:
            what = f"{epochs:g} passes over the {rows:,} rows of {name} are less than one row"
            fix = f"set tasks.{name}.max_epochs to {math.ceil(1e6 / rows) / 1e6:g} or more, or tasks.{name}.weight to 0"
            problems.append(Problem(_cap_field(recipe, name), what, fix, "mixture-supply"))
    if problems:
        raise InputError(problems)


def _check_caps(recipe: Recipe, supplies: Supplies, drawn: int) -> None:
    """All caps together must fill the run; the largest task is the one to raise."""
    supply = {task: supplies[task].cap for task in recipe.tasks}
    total = sum(cap for cap in supply.values() if cap is not None)
    if any(cap is None for cap in supply.values()) or total >= drawn:
        return
    largest = max(recipe.tasks, key=lambda task: supplies[task].rows)
    needed = _passes(drawn - total + (supply[largest] or 0), supplies[largest].rows)
    epochs = {name: _most_epochs(recipe, name) for name in recipe.tasks}
    each = ", ".join(
        f"{task} {cap:,} ({supplies[task].rows:,} rows x {epochs[task]:g})" for task, cap in supply.items()
    )
    what = f"the run draws {drawn:,} examples, max_epochs allows {total:,}: {each}"
    fix = f"set tasks.{largest}.max_epochs to {needed:g} or more"
    if steps := total // recipe.batch.examples:
        fix += f", or schedule.steps to {steps} or less"
    raise InputError(Problem(_cap_field(recipe, largest), what, fix, "mixture-supply"))


def _nothing_left(recipe: Recipe, supplies: Supplies, plan: Sequence[Stage], index: int) -> Problem:
    """From an index on, every task with a weight is used up, while others that have none could still be drawn."""
    size, steps = recipe.batch.examples, recipe.schedule.steps
    stage = next(stage for stage in reversed(plan) if stage.start <= index)
    end = next((later.start for later in plan if later.start > index), steps * size)
    drawn = [task for task, weight in zip(recipe.tasks, stage.weights, strict=True) if weight]
    largest = max(drawn, key=lambda task: supplies[task].rows)
    needed = _passes((supplies[largest].cap or 0) + end - index, supplies[largest].rows)
    each = ", ".join(f"{task} {supplies[task].cap:,}" for task in drawn)
    what = (
        f"in step {index // size + 1:,} of {steps:,} max_epochs has used up every task with a weight ({each} examples)"
        f", and {end - index:,} more are to be drawn with these weights, up to step {end // size:,}"
    )
    fix = f"set tasks.{largest}.max_epochs to {needed:g} or more, or give another task a weight above 0 there"
    return Problem(_cap_field(recipe, largest), what, fix, "mixture-supply")


def _most_epochs(recipe: Recipe, task: str) -> float | None:
    """The passes that a task may take: its own number, else that of all."""
    return recipe.tasks[task].max_epochs or recipe.mixture.max_epochs


def _passes(examples: int, rows: int) -> float:
    """Epochs that hold so many examples, rounded up to hundredths."""
    return math.ceil(examples / rows * 100) / 100


def _cap_field(recipe: Recipe, task: str) -> str:
    """The field that limits a task."""
    return f"tasks.{task}.max_epochs" if recipe.tasks[task].max_epochs is not None else "mixture.max_epochs"
