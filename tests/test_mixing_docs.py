"""docs/mixing.md: its YAML is valid in the recipe that it belongs to, and what it promises holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml

from lmrecipes.data.mixture import Supply
from lmrecipes.data.weights import build_mixture, cap_of
from lmrecipes.recipe import Batch, LossWeighting, Mixture, Recipe

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "mixing.md").read_text()
PIECES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LENGTHS = {"urgency": 7, "topic": 20, "tags": 90}
ROWS = {"urgency": 6000, "topic": 2500, "tags": 1200}


def merged(base: Mapping[str, Any], piece: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: merged(base[key], piece[key]) for key in base.keys() & piece.keys() if isinstance(piece[key], dict)}
    return {**base, **piece, **both}


def recipe_of(piece: str) -> Recipe:
    return Recipe.model_validate(merged(yaml.safe_load((DOCS / "own_data.yaml").read_text()), yaml.safe_load(piece)))


def test_there_are_pieces_and_every_word_for_a_choice_is_explained() -> None:
    assert len(PIECES) >= 8
    for part, field in ((Mixture, "unit"), (Mixture, "law"), (Batch, "layout"), (LossWeighting, "method")):
        choices = [
            word for word in re.findall(r"'(\w+)'", str(part.model_fields[field].annotation)) if word != "static"
        ]
        assert choices
        for word in choices:
            assert word.replace("_", " ") in TEXT or word in TEXT or word == "supervised_tokens", word
    assert {"odm", "ado", "off"} == set(
        get_args(Mixture.model_fields["adaptive"].default.__class__.model_fields["method"].annotation)
    )


@pytest.mark.parametrize("piece", PIECES)
def test_a_piece_is_a_recipe_whose_stream_keeps_its_promises(piece: str) -> None:
    recipe = recipe_of(piece)
    tokens = recipe.mixture.unit == "tokens"
    supplies = {
        name: Supply(
            rows, rows * LENGTHS[name] if tokens else rows, cap_of(recipe, name, rows),
            (lambda chosen, length=LENGTHS[name]: np.full(len(chosen), length)) if tokens else None,
        )
        for name, rows in ROWS.items()
    }  # fmt: skip
    mixture = build_mixture(recipe, supplies)
    for step in range(1, recipe.schedule.steps + 1, 7):
        counts, targets = mixture.counts(step * recipe.batch.examples), mixture.targets(step * recipe.batch.examples)
        for name, count in counts.items():
            off = abs(count * (LENGTHS[name] if tokens else 1) - targets[name])
            assert off <= (max(LENGTHS.values()) if tokens else 2)
    size = recipe.batch.examples
    drawn, rows = mixture.at(np.arange(recipe.schedule.steps * size))
    for number, (name, count) in enumerate(ROWS.items()):
        for step in range(1, recipe.schedule.steps + 1, 50):
            times = np.bincount(rows[: step * size][drawn[: step * size] == number], minlength=count)
            assert times.max() - times.min() <= 1, f"all rows of {name} before one comes again"


def test_half_of_the_tokens_are_the_topics() -> None:
    (piece,) = [piece for piece in PIECES if "however long its texts" in piece]
    weights = {name: task.weight for name, task in recipe_of(piece).tasks.items()}
    assert weights["topic"] == weights["urgency"] + weights["tags"]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (DOCS / target).is_file(), target
