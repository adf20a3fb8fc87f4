"""docs/precision.md: its YAML is valid in the recipe that it belongs to, and what it says of defaults holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from test_mixing_docs import merged

from lmrecipes.recipe import LossScaling, Precision, Recipe
from lmrecipes.recipe_precision import Compute

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "precision.md").read_text()
BASE = yaml.safe_load((DOCS / "own_data.yaml").read_text())
PIECES = [yaml.safe_load(piece) for piece in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: ",".join(piece["precision"]))
def test_a_piece_completes_the_recipe(piece: dict[str, Any]) -> None:
    assert Recipe.model_validate(merged(BASE, piece)) != Recipe.model_validate(BASE)


def test_what_is_said_of_defaults() -> None:
    assert len(PIECES) >= 6
    default = Precision()
    assert default.compute == "bf16" and default.master_weights == "fp32" and not default.by_layer
    assert PIECES[1]["precision"]["loss_scaling"] == LossScaling().model_dump()
    for word in get_args(Compute):
        assert f"| `{word}` |" in TEXT
    for field in Precision.model_fields:
        assert field in TEXT or field == "fp8", field


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (DOCS / target).is_file(), target
