"""What a mixture means in numbers, before it runs."""

from __future__ import annotations

from typing import Any

from lmrecipes.data.encode import EncodedTask, training_rows
from lmrecipes.data.mixture import build_mixture
from lmrecipes.recipe import Recipe


def mixture_facts(recipe: Recipe, tasks: dict[str, EncodedTask]) -> dict[str, dict[str, Any]]:
    """For each task: rows, tokens, tokens_per_row, truncated and skipped rows of the training split; its share of the
    examples and (expected) of the tokens; examples and epochs over the whole run."""
    mixture = build_mixture(recipe, training_rows(tasks))
    examples = mixture.counts(recipe.schedule.steps * recipe.batch.examples)
    facts = {}
    for name, share in zip(mixture.tasks, mixture.shares, strict=True):
        counts = tasks[name].counts["train"]
        facts[name] = {
            **counts,
            "tokens_per_row": counts["tokens"] / counts["rows"],
            "skipped": tasks[name].skipped,
            "share": share,
            "examples": examples[name],
            "epochs": examples[name] / counts["rows"],
        }
    expected = {name: fact["share"] * fact["tokens_per_row"] for name, fact in facts.items()}
    for name, fact in facts.items():
        fact["token_share"] = expected[name] / sum(expected.values())
    return facts
