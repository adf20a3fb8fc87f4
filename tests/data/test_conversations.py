"""Conversations: every layout gives the same messages, and what is no conversation says why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lmrecipes.data.conversations import BadRow, Conversation, read_conversation

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]
NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": NAMES[message["role"]], "value": message["content"]} for message in MESSAGES]
PARTS = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in MESSAGES]


@pytest.mark.parametrize(
    "row",
    [
        {"turns": MESSAGES},
        {"turns": MESSAGES, "system": None},
        {"turns": MESSAGES, "system": "Be brief."},
        {"turns": MESSAGES[1:], "system": "Be brief."},
        {"turns": SHAREGPT},
        {"turns": [{**turn, "from": turn["from"].upper(), "weight": None} for turn in SHAREGPT]},
        {"turns": PARTS},
        {"turns": tuple(MESSAGES)},
        {"turns": np.array(MESSAGES, object)},
        {"turns": json.dumps(MESSAGES)},
        {"turns": {key: [turn[key] for turn in MESSAGES] for key in ("role", "content")}},
        {"turns": [{**message, "name": None, "tool_calls": None} for message in MESSAGES]},
        {"turns": [{"role": "system", "content": ""}, *MESSAGES[1:]], "system": "Be brief."},
        {"turns": [{"role": "developer", "content": "Be brief."}, *MESSAGES[1:]]},
    ],
)
def test_layouts_of_turns(row: dict[str, Any]) -> None:
    assert read_conversation(row) == Conversation(MESSAGES, (2, 4))


def said(row: dict[str, Any], system_prompt: str | None = None) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in read_conversation(row, system_prompt).messages]


def test_prompt_and_completion() -> None:
    assert said({"prompt": "Add", "completion": " 3"}) == [("user", "Add"), ("assistant", " 3")]
    assert said({"prompt": "Add", "context": "1 + 2", "completion": "3"})[0] == ("user", "Add\n\n1 + 2")
    for empty in ("", None, "  ", float("nan")):
        assert said({"prompt": "Add", "context": empty, "completion": "3"})[0] == ("user", "Add")
    assert said({"prompt": "", "context": "1 + 2", "completion": "3"})[0] == ("user", "1 + 2")


def test_only_the_completion_of_lists_is_learned() -> None:
    row = {"prompt": MESSAGES[:4], "completion": MESSAGES[4:]}
    assert read_conversation(row) == Conversation(MESSAGES, (4,))


def test_the_recipes_system_prompt_is_of_conversations_without_one() -> None:
    row = {"prompt": "Add", "completion": "3"}
    assert said(row, "Count.")[0] == ("system", "Count.")
    assert said({**row, "system": "Think."}, "Count.")[0] == ("system", "Think.")
    assert said({"turns": MESSAGES}, "Count.")[0] == ("system", "Be brief.")
    assert read_conversation(row, "Count.").learned == (2,)


def test_turns_of_weight_0_carry_no_loss() -> None:
    turns = [{**MESSAGES[2], "weight": 0}, MESSAGES[3], {**MESSAGES[4], "weight": 1}]
    found = read_conversation({"turns": turns})
    assert found.learned == (2,)
    assert found.messages == MESSAGES[2:], "the weight is not the template's business"
    with pytest.raises(BadRow, match="no turn of the assistant that carries loss"):
        read_conversation({"turns": turns[:1]})


def test_calls_of_tools_go_to_the_template() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    found = read_conversation({"turns": [MESSAGES[1], call, {"role": "function", "content": ""}, MESSAGES[4]]})
    assert found.messages[1] == {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]}
    assert found.messages[2]["role"] == "tool"
    assert found.learned == (1, 3)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"turns": None}, "the list of turns is None, not a list"),
        ({"turns": "hello"}, "the list of turns is 'hello', not a list"),
        ({"turns": []}, "the list of turns is empty"),
        ({"turns": "[]"}, "the list of turns is empty"),
        ({"turns": ["Hi"]}, "turn 1 is 'Hi', not a dictionary"),
        ({"turns": [{"content": "Hi"}]}, "turn 1 has no role: its keys are content"),
        ({"turns": [{"role": None, "content": "Hi"}]}, "turn 1 has the role None"),
        ({"turns": [*MESSAGES[:2], {"role": "asistant", "content": "x"}]}, "Did you mean `assistant`"),
        ({"turns": [MESSAGES[1], {"role": "assistant"}]}, "turn 2 says None, not a text"),
        ({"turns": [MESSAGES[1], {"role": "assistant", "content": " \n"}]}, r"turn 2 \(assistant\) is empty"),
        ({"turns": [{"role": "user", "content": ""}, MESSAGES[2]]}, r"turn 1 \(user\) is empty"),
        ({"turns": [{"role": "user", "content": [{"type": "image_url"}]}]}, "holds a part of type 'image_url'"),
        ({"turns": [{"role": "user", "content": [{"type": "text"}]}]}, "turn 1 says None, not a text"),
        ({"turns": [{"role": "user", "content": "half \ud83d"}]}, "half a surrogate pair"),
        ({"turns": MESSAGES[:2]}, "no turn of the assistant"),
        ({"turns": MESSAGES, "system": "Other."}, "its system prompt differs"),
        ({"turns": MESSAGES[1:], "system": 5}, "the system prompt says 5, not a text"),
        ({"prompt": "", "completion": "x"}, "the prompt is empty"),
        ({"prompt": "x", "completion": " "}, "the completion is empty"),
        ({"prompt": "x", "completion": None}, "the completion is None, not a list"),
        ({"prompt": "x", "context": 5, "completion": "y"}, "the context says 5"),
        ({"prompt": MESSAGES, "completion": [MESSAGES[1]]}, "no turn of the assistant that carries loss"),
    ],
)
def test_bad_rows(row: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRow, match=says):
        read_conversation(row)


def test_two_turns_of_the_user_in_a_row_are_fine() -> None:
    turns = [MESSAGES[1], MESSAGES[3], MESSAGES[4]]
    assert read_conversation({"turns": turns}) == Conversation(turns, (2,))
