"""What a mixture means in numbers, before it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.mixture import Mixture, Supply
from lmrecipes.data.weights import build_mixture, cap_of
from lmrecipes.problems import Problem
from lmrecipes.recipe import ADAPTIVE_LAG, Recipe

MANY_EPOCHS = 40
"""Passes over the same rows from which on a task is likely a mistake: beyond 16 more of them teach nothing
(arXiv 2305.16264, section 6)."""


def supplies(recipe: Recipe, tasks: Mapping[str, EncodedTask]) -> dict[str, Supply]:
    """What the encoded tasks give to the mixture, in its unit."""
    found = {}
    for name, task in tasks.items():
        split, counts = task.train, task.counts["train"]
        cap = cap_of(recipe, name, len(split))
        if recipe.mixture.unit == "tokens":
            found[name] = Supply(len(split), counts["tokens"], cap, split.lengths_of)
        elif recipe.mixture.unit == "supervised_tokens":
            found[name] = Supply(len(split), counts["supervised"], cap, split.supervised_of)
        else:
            found[name] = Supply(len(split), len(split), cap)
    return found


def mixture_of(recipe: Recipe, tasks: Mapping[str, EncodedTask]) -> Mixture:
    """The stream of a recipe over its encoded tasks. Raises InputError where they cannot fill the run."""
    return build_mixture(recipe, supplies(recipe, tasks))


def planned(recipe: Recipe, mixture: Mixture) -> dict[str, dict[str, Any]]:
    """What a mixture draws of each task over the whole run.

    rows: of the training split. share: what the weights ask for over the run, in the mixture's unit. examples,
    example_share, epochs: exact. exhausted_at: the step that draws its last example where max_epochs ends it, or None.
    shares: in force after so many steps, where they change: `[[steps, share], ...]`.
    """
    size = recipe.batch.examples
    drawn = recipe.schedule.steps * size
    examples, targets = mixture.counts(drawn), mixture.targets(drawn)
    exhausted = mixture.exhausted_before(drawn)
    changes = {0, *(stage.start // size for stage in mixture.plan), *(-(-end // size) for end in exhausted.values())}
    shares = [(step, mixture.shares_at(step * size)) for step in sorted(changes) if step < recipe.schedule.steps]
    total = sum(targets.values())
    return {
        name: {
            "rows": rows,
            "share": round(targets[name] / total, 9),
            "examples": examples[name],
            "example_share": examples[name] / drawn,
            "epochs": examples[name] / rows,
            "exhausted_at": (exhausted[name] - 1) // size + 1 if name in exhausted else None,
            "shares": [[step, round(share[name], 9)] for step, share in shares],
        }
        for name, rows in zip(mixture.tasks, mixture.rows, strict=True)
    }


def mixture_facts(
    recipe: Recipe, tasks: Mapping[str, EncodedTask], mixture: Mixture | None = None
) -> dict[str, dict[str, Any]]:
    """What there is of each task, and what the run draws of it (see `planned`).

    tokens (an image's and a clip's positions count too), tokens_per_row, truncated, supervised (tokens with loss),
    documents (of language modelling only), without_text, without_image, without_audio (where rows may lack one), masked
    (rows left out because `max_length` cuts all of these off): of the training split. masked_rows: the same of every
    split that has some; masked_places: where the first ones stand. skipped: bad rows of all splits. duplicates: as in
    `EncodedTask`. planned_tokens, token_share: with the task's mean length. mixture: None, the recipe's.
    """
    facts = planned(recipe, mixture or mixture_of(recipe, tasks))
    for name, task in tasks.items():
        counts, fact = task.counts["train"], facts[name]
        per_row = counts["tokens"] / counts["rows"]
        fact |= {"kind": task.task.kind, **counts, "tokens_per_row": per_row}
        fact |= {"skipped": task.skipped, "duplicates": dict(task.duplicates)}
        if masked := {split: count["masked"] for split, count in task.counts.items() if count["masked"]}:
            fact |= {"masked_rows": masked, "masked_places": list(task.masked_places)}
        fact["planned_tokens"] = round(fact["examples"] * per_row)
    total = sum(fact["planned_tokens"] for fact in facts.values())
    for fact in facts.values():
        fact["token_share"] = fact["planned_tokens"] / total
    return facts


def mixture_warnings(recipe: Recipe, facts: Mapping[str, Mapping[str, Any]]) -> list[Problem]:
    """What a person would not expect of the mixture, as warnings. Of facts from `planned` alone: all but the masked."""
    found = []
    for name, fact in facts.items():
        where, steps = f"tasks.{name}", fact["examples"] / recipe.batch.examples
        if fact["epochs"] >= MANY_EPOCHS:
            what = f"its {fact['rows']:,} rows are repeated {fact['epochs']:.0f} times over the run"
            fix = f"set {where}.max_epochs, a smaller {where}.weight, or fewer schedule.steps"
            found.append(Problem(f"{where}.weight", what, fix, "mixture-repeats", "warning"))
        if fact["examples"] == 0:
            what = "the run never draws it"
            fix = f"raise {where}.weight, or leave the task out"
            found.append(Problem(f"{where}.weight", what, fix, "mixture-unused", "warning"))
        elif steps < 1:
            what = (
                f"the whole run draws {fact['examples']:,} of its examples, "
                f"less than the {recipe.batch.examples:,} of one step"
            )
            fix = f"raise {where}.weight or schedule.steps, or leave the task out"
            found.append(Problem(f"{where}.weight", what, fix, "mixture-little", "warning"))
        ends = fact["exhausted_at"]
        if ends is not None and ends < recipe.schedule.steps and recipe.mixture.resolved_law != "unimax":
            what = (
                f"max_epochs is reached in step {ends:,} of {recipe.schedule.steps:,}, after {fact['examples']:,} "
                "examples; from then on its share flows to the other tasks"
            )
            fix = f"raise {where}.max_epochs, unless that is meant"
            found.append(Problem(f"{where}.max_epochs", what, fix, "mixture-exhausted", "warning"))
        if masked := fact.get("masked_rows"):
            rows = ", ".join(f"{count:,} rows of {split}" for split, count in masked.items())
            places = "; ".join(fact["masked_places"])
            what = f"left out, as max_length cuts off all that the assistant says: {rows} ({places})"
            fix = f"raise {where}.max_length, or leave these rows out of the source"
            found.append(Problem(f"{where}.max_length", what, fix, "mixture-masked", "warning"))
    return found + _without_effect(recipe)


def _without_effect(recipe: Recipe) -> list[Problem]:
    """Settings of the mixture that so short a run never comes to."""
    steps, points, found = recipe.schedule.steps, recipe.mixture.schedule, []
    starts = [*(round(point.at * steps) for point in points), steps]
    for number, point in enumerate(points):
        if starts[number] >= starts[number + 1]:
            where = f"mixture.schedule.{number}"
            what = f"its weights never hold: at {point.at:g} of {steps:,} steps, no step comes before the next change"
            fix = f"raise schedule.steps, or remove {where}"
            found.append(Problem(where, what, fix, "mixture-no-effect", "warning"))
    adaptive = recipe.mixture.adaptive
    warmup = math.ceil(adaptive.warmup_fraction * steps / adaptive.every)
    first = (warmup + 1) * adaptive.every + ADAPTIVE_LAG
    if adaptive.method != "off" and first >= steps:
        what = f"weights change after {first:,} steps at the earliest, the run has {steps:,}"
        fix = "lower mixture.adaptive.every, or raise schedule.steps"
        found.append(Problem("mixture.adaptive.every", what, fix, "mixture-no-effect", "warning"))
    return found
