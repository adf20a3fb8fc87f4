"""`lmrecipes check` looks through the tasks' rows: errors and warnings of all tasks together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_recipe
from tiny_gpt import make_gpt_recipe

from lmrecipes.planning.check import check_data, check_mixture, check_tokens
from lmrecipes.recipe import Recipe


@pytest.mark.usefixtures("no_assets")
def test_rows_in_two_splits_are_a_warning(tiny: Path, tmp_path: Path) -> None:
    files = {}
    for split, numbers in {"train": range(100), "validation": range(95, 105), "test": range(200, 210)}.items():
        files[split] = str(tmp_path / f"{split}.jsonl")
        rows = [{"text": f"text {number}", "label": number} for number in numbers]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {
        "leaks": {"kind": "regression", "source": {"splits": files}},
        "broken": {"kind": "classification", "source": {"splits": {**files, "test": str(tmp_path / "none.jsonl")}}},
        "clean": {"kind": "regression", "source": {"files": files["train"]}},
    }
    leaks, broken = check_data(Recipe.model_validate(make_recipe(tiny, tasks=tasks)))
    assert (leaks.severity, leaks.id) == ("warning", "duplicate-rows")
    assert "5 of 10 rows of validation (50.0%) stand in train too" in leaks.what
    assert "rows of test" not in leaks.what
    assert (broken.severity, broken.id) == ("error", "file-missing")


@pytest.mark.usefixtures("no_assets")
def test_documents_and_conversations_are_looked_through(tiny: Path, tmp_path: Path) -> None:
    """Without a tokenizer. How many texts documents are cut into is not known, so nothing is said of the mixture."""
    talks = [{"prompt": f"red {number}", "completion": "blue" if number != 7 else ""} for number in range(60)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    for number in range(60):
        (tmp_path / f"{number}.txt").write_text(f"red {number}")
    tasks = {
        "chat": {"kind": "chat", "source": {"files": str(tmp_path / "talks.jsonl")}},
        "lm": {"kind": "language_modelling", "source": {"files": str(tmp_path / "*.txt")}},
    }
    made = make_recipe(tiny, tasks=tasks, **{"schedule.steps": 10_000, "model.pretrained": "nowhere"})
    (bad,) = check_data(Recipe.model_validate(made))
    assert (bad.where, bad.id) == ("tasks.chat.source", "bad-rows")
    assert "talks.jsonl line 8: the completion is empty" in bad.what
    del made["tasks"]["chat"]
    assert check_data(Recipe.model_validate(made)) == []


def test_the_tokenizer_must_serve_the_tasks(tiny: Path, tiny_gpt: Path) -> None:
    """All lacks at once; nothing is said where the tokenizer is not on this machine or is to be trained."""

    def found(**changes: Any) -> list[str]:
        return [p.id for p in check_tokens(Recipe.model_validate(make_gpt_recipe(tiny_gpt, **changes)))]

    assert found() == []
    encoder = {"model.pretrained": str(tiny / "model"), "model.pooling": "mean"}
    assert found(**encoder) == ["tokenizer-no-end", "tokenizer-no-end", "chat-template-missing"]
    assert found(**{"model.max_length": 200}) == ["max-length"]
    assert found(**{"model.pretrained": "somebody/elsewhere"}) == []
    trained = {"config": {"model_type": "llama"}, "tokenizer_vocabulary": 512}
    assert found(model=trained) == []


ROWS = {"short": 232, "long": 159, "rare": 46}


def of_mixture(rows: dict[str, int] = ROWS, **changes: Any) -> list[tuple[str, str, str]]:
    """(severity, id, where) of what a check says of the tiny recipe's mixture."""
    found = check_mixture(Recipe.model_validate(make_recipe(Path("none"), **changes)), rows)
    return [(problem.severity, problem.id, problem.where) for problem in found]


def test_the_mixture_is_checked_by_rows_alone() -> None:
    assert of_mixture(**{"schedule.steps": 60}) == []
    assert of_mixture() == [("warning", "mixture-little", "tasks.rare.weight")]
    assert of_mixture(**{"mixture.max_epochs": 1, "schedule.steps": 100}) == [
        ("error", "mixture-supply", "mixture.max_epochs")
    ]
    assert of_mixture(**{"mixture.replay": "none.jsonl"}) == [("error", "replay-plan", "mixture.replay: none.jsonl")]


def test_a_mixture_that_only_encoding_tells_is_left_to_the_run() -> None:
    unknown = {"short": 232, "long": 159}
    assert of_mixture(unknown, **{"mixture.max_epochs": 1, "schedule.steps": 100}) == []
    assert of_mixture(**{"mixture.unit": "tokens", "mixture.max_epochs": 1, "schedule.steps": 100}) == []


@pytest.mark.usefixtures("no_assets")
def test_rows_and_mixture_are_checked_together(tiny: Path) -> None:
    changes = {"schedule.steps": 600, "tasks.long.max_epochs": 0.5}
    found = check_data(Recipe.model_validate(make_recipe(tiny, **changes)))
    assert [problem.id for problem in found] == ["mixture-exhausted"]
    assert "after 79 examples" in found[0].what
