"""The mixture as people read it: its title, the lines at the start of a run, and tables that fit."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import make_recipe

from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.facts import mixture_facts, mixture_of
from lmrecipes.mixture_text import announce, lines, print_mixture, title
from lmrecipes.recipe import Recipe


def tiny_recipe(folder: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(make_recipe(folder, **changes))


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ({}, "shares of examples by weight"),
        ({"unit": "supervised_tokens"}, "shares of supervised tokens by weight"),
        ({"law": "proportional"}, "by weight x size"),
        ({"temperature": 2.5}, "by weight x size ^ (1/2.5)"),
        ({"schedule": [{"at": 0.5, "weights": {}}]}, "by weight, by schedule"),
        ({"schedule": [{"at": 0.5, "weights": {}}], "between": "linear"}, "by schedule in straight lines"),
        ({"adaptive": {"method": "ado", "every": 7}}, "by weight at first, then ado every 7 steps"),
        ({"replay": "plan.jsonl"}, "by weight, then as plan.jsonl says"),
    ],
)
def test_the_title_says_what_shares_count_and_where_they_come_from(mixture: dict[str, Any], says: str) -> None:
    said = title(tiny_recipe(Path("none"), mixture=mixture, **{"schedule.steps": 1000}))
    assert said.startswith("mixture: 1,000 steps x 16 = 16,000 examples; shares of ")
    assert said.endswith(says)


def test_a_run_starts_with_its_mixture_and_what_is_surprising(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = tiny_recipe(tiny, **{"schedule.steps": 100, "tasks.long.max_epochs": 2})
    tasks = encode_tasks(recipe, progress=False)
    with caplog.at_level(logging.INFO, "lmrecipes"):
        facts = announce(recipe, tasks, mixture_of(recipe, tasks))
    assert facts == mixture_facts(recipe, tasks)
    first, second, *warnings = [record.getMessage() for record in caplog.records]
    assert first == title(recipe)
    assert second.split(", ")[1] == "long 19.9% (2.00 epochs)"
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING"]
    assert "warning: tasks.long.max_epochs: max_epochs is reached in step 54 of 100" in warnings[0]


def token_recipe(folder: Path, **kinds: str) -> tuple[Recipe, dict[str, Any]]:
    """A recipe over three tasks, of which some are of tokens, and facts about it as they would then be."""
    recipe = tiny_recipe(folder)
    facts = mixture_facts(recipe, encode_tasks(recipe, progress=False))
    for name, kind in kinds.items():
        facts[name] |= {"kind": kind, "rows": 1_500, "tokens": 40_000, "supervised": 10_000, "epochs": 0.5}
        if kind == "language_modelling":
            facts[name] |= {"documents": 321, "supervised": 39_600}
    return recipe, facts


def test_tasks_of_tokens_are_counted_in_their_own_words(tiny: Path) -> None:
    recipe, facts = token_recipe(tiny, short="language_modelling", long="chat")
    _, each = lines(recipe, facts)
    assert "(0.50 epochs of 321 documents, 40,000 tokens), long" in each
    assert "(0.50 epochs of 1,500 conversations, 25.0% of their tokens with loss), rare" in each
    assert each.endswith("epochs)"), "rare labels whole texts"


@pytest.mark.parametrize(
    ("kinds", "heads"),
    [
        ({}, ["rows"]),
        ({"short": "chat"}, ["rows", "with loss"]),
        ({"short": "chat", "long": "chat", "rare": "chat"}, ["conversations", "with loss"]),
        (
            {"short": "chat", "long": "language_modelling", "rare": "language_modelling"},
            ["documents", "texts", "with loss"],
        ),
    ],
)
def test_the_table_has_the_columns_that_the_tasks_need(kinds: dict[str, str], heads: list[str], tiny: Path) -> None:
    recipe, facts = token_recipe(tiny, **kinds)
    out = io.StringIO()
    print_mixture(recipe, facts, [], Console(file=out, width=200))
    head, _, *rows = out.getvalue().splitlines()[2:]
    assert [
        word for word in ("documents", "rows", "texts", "conversations", "with loss") if f" {word} " in head
    ] == heads
    (long,) = [row.split() for row in rows if row.startswith(" long")]
    kind = kinds.get("long")
    assert long[1] == {"language_modelling": "321", "chat": "1,500"}.get(kind or "", f"{facts['long']['rows']}")
    assert ("99.0%" in long) == (kind == "language_modelling") and ("25.0%" in long) == (kind == "chat")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_tables_fit_the_terminal(width: int, tiny: Path) -> None:
    """Also with every column, large numbers and a long name; nothing is cut off but by folding."""
    recipe = tiny_recipe(tiny)
    facts = mixture_facts(recipe, encode_tasks(recipe, progress=False))
    long = "a_task_with_a_long_name"
    facts[long] = {
        **facts["long"], "rows": 123_456_789, "tokens_per_row": 1234.5, "truncated": 99_999, "masked": 12_345,
        "skipped": 54_321, "duplicates": {"train/test": 1_234}, "examples": 98_765_432, "planned_tokens": 10**13,
        "epochs": 1234.5, "exhausted_at": 123_456, "shares": [[0, 0.5], [123_456, 0.25]],
    }  # fmt: skip
    for name in ("short", "long", "rare"):
        facts[name]["shares"] = [[0, 0.1], [123_456, 0.2]]
    out = io.StringIO()
    print_mixture(recipe, facts, [], Console(file=out, width=width))
    table = out.getvalue().splitlines()[1:]
    assert max(map(len, table)) <= width
    assert "…" not in out.getvalue()
    for words in ("123.5 M", "1,234.5", "99,999", "12,345", "54,321", "98.8 M", "10.0 T", "step 123,456", "50.0%"):
        assert words in out.getvalue()
    assert sum(line.startswith(" task") for line in table) == (2 if width == 200 else 3), "one table where it fits"
