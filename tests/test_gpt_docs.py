"""docs/gpt.md: its YAML is valid in the recipe that it begins with, and what it says of defaults and columns holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from test_mixing_docs import merged

from lmrecipes import assets
from lmrecipes.data.columns import LAYOUTS, Wanted
from lmrecipes.data.conversations import read_conversation
from lmrecipes.recipe import METRICS, ChatFormat, Recipe
from lmrecipes.recipe_files import find_recipe

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "gpt.md").read_text()
BASE, *PIECES = (yaml.safe_load(piece) for piece in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: "+".join(piece))
def test_a_piece_completes_the_recipe(piece: dict[str, Any]) -> None:
    base = BASE
    if "config" in piece.get("model", {}):
        base = {**BASE, "model": {"max_length": 512}}  # `config` stands in place of `pretrained`
    recipe = Recipe.model_validate(merged(base, piece))
    assert recipe != Recipe.model_validate(BASE)


def test_what_is_said_of_defaults() -> None:
    recipe = Recipe.model_validate(BASE)
    chat = recipe.tasks["support"]
    assert recipe.token_loss == "pooled" and "`token_loss: pooled` (the default)" in TEXT
    assert chat.max_masked_fraction == 0.05 and "`max_masked_fraction` (5%)" in TEXT
    assert chat.supervise == "assistant"
    assert recipe.model.lora.targets == ()
    for metric in METRICS["chat"]:
        assert f"`{metric}`" in TEXT
    assert assets.find(recipe.model.pretrained).converted


def test_the_layouts_are_those_of_the_code() -> None:
    rows = {found[1]: found[2] for found in re.finditer(r"^\| `(\w+)`[^|]*\| (.*) \|$", TEXT, re.MULTILINE)}
    named = [name for name in get_args(ChatFormat.model_fields["layout"].annotation) if name != "auto"]
    assert set(rows) >= set(named) == set(LAYOUTS)
    for layout in named:
        for column in LAYOUTS[layout].values():
            assert f"`{column}`" in rows[layout]


def test_the_piece_on_columns_reads_rows_as_it_says() -> None:
    (piece,) = [piece for piece in PIECES if "chat" in str(piece.get("tasks"))]
    task = Recipe.model_validate(merged(BASE, piece)).tasks["support"]
    row = {"question": "Why?", "answer": "Because.", "customer": "1"}
    roles = Wanted(task, "tasks.support.source").among(list(row), "a file")
    said = read_conversation({role: row[column] for role, column in roles.items()}, task.source.chat.system_prompt)
    assert [message["role"] for message in said.messages] == ["system", "user", "assistant"]
    assert said.messages[0]["content"] == "You answer briefly."


def test_the_recipes_are_those_that_it_speaks_of() -> None:
    mixture, chat = find_recipe("gpt_mixture"), find_recipe("gpt_chat")
    assert set(mixture.variants) == {"recipe", "full", "scratch"}
    assert set(chat.variants) == {"recipe", "full", "lora"}
    for file in (mixture, chat):
        for name in file.variants:
            recipe = file.build(name)
            assert len(recipe.tasks) >= 4
            assert all(task.of_tokens for task in recipe.tasks.values())
            assert recipe.evaluation.start and recipe.evaluation.samples
    assert mixture.build().mixture.unit == "tokens"
    assert mixture.build("scratch").model.from_scratch
    assert chat.build("lora").model.lora.rank == 16
    assert {task.kind for task in chat.build().tasks.values()} == {"chat"}


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (DOCS / target).is_file(), target
