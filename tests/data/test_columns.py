"""Which columns a task reads: the recipe's, or those by which a layout is known."""

from __future__ import annotations

from typing import Any

import pytest

from lmrecipes.data.columns import Wanted
from lmrecipes.problems import InputError
from lmrecipes.recipe import Task


def among(found: list[str], kind: str = "chat", sparse: bool = False, **source: Any) -> dict[str, str]:
    task = Task.model_validate({"kind": kind, "source": {"files": "x", **source}})
    return Wanted(task, "tasks.t.source").among(found, "x.jsonl", sparse)


def refused(found: list[str], **source: Any) -> list[tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        among(found, **source)
    return [(problem.where, problem.id) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("found", "chat", "roles"),
    [
        (["id", "messages"], {}, {"turns": "messages"}),
        (["conversations", "system"], {}, {"turns": "conversations", "system": "system"}),
        (
            ["instruction", "input", "output", "text"],
            {},
            {"prompt": "instruction", "context": "input", "completion": "output"},
        ),
        (["prompt", "completion", "input"], {}, {"prompt": "prompt", "completion": "completion"}),
        (["prompt", "messages", "completion"], {}, {"turns": "messages"}),
        (
            ["prompt", "messages", "completion"],
            {"layout": "prompt_completion"},
            {"prompt": "prompt", "completion": "completion"},
        ),
        (["talk", "messages"], {"turns": "talk"}, {"turns": "talk"}),
        (["q", "a", "system", "s"], {"prompt": "q", "completion": "a", "system": "s"},
         {"prompt": "q", "completion": "a", "system": "s"}),
        (["messages", "q", "completion"], {"prompt": "q"}, {"prompt": "q", "completion": "completion"}),
        (["q", "output", "c"], {"prompt": "q", "context": "c"},
         {"prompt": "q", "completion": "output", "context": "c"}),
    ],
)  # fmt: skip
def test_columns_of_a_conversation(found: list[str], chat: dict[str, str], roles: dict[str, str]) -> None:
    assert among(found, chat=chat) == roles


def test_what_is_missing_is_named_by_its_field() -> None:
    assert refused(["text", "reply"]) == [("tasks.t.source.chat", "chat-columns")]
    assert refused(["prompt"], chat={"completion": "reply"}) == [("tasks.t.source.chat", "chat-columns")]
    alpaca = refused(["instructions", "output"], chat={"layout": "alpaca", "system": "persona"}, group="who")
    assert alpaca == [
        ("tasks.t.source.chat.prompt", "column-missing"),
        ("tasks.t.source.chat.system", "column-missing"),
        ("tasks.t.source.group", "column-missing"),
    ]
    assert refused(["messages", "messages"]) == [("tasks.t.source.chat.turns", "column-repeated")]
    assert refused(["label"], kind="language_modelling") == [("tasks.t.source.text", "column-missing")]


def test_a_column_that_later_rows_may_have_is_read() -> None:
    assert among(["messages"], sparse=True) == {"turns": "messages", "system": "system"}
    assert among(["messages", "system", "system"]) == {"turns": "messages"}


def test_columns_of_texts() -> None:
    assert among(["text"], kind="language_modelling") == {"text": "text"}
    assert among(["text", "label"], kind="regression") == {"text": "text", "label": "label"}
    assert among(["a", "b", "y", "g"], kind="regression", text="a", text_pair="b", label="y", group="g") == {
        "text": "a", "text_pair": "b", "label": "y", "group": "g",
    }  # fmt: skip
