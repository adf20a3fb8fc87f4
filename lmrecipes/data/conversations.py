"""Rows of a chat task -> conversations, whatever the layout of their columns: one list of messages for the template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmrecipes.data.labels import missing, plain, short
from lmrecipes.problems import did_you_mean, listing

ROLES: Mapping[str, str] = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
"""The role that a template knows, by what data sets call it."""
SPELLINGS = (("role", "content"), ("from", "value"))
"""Keys of a turn: of OpenAI's messages, and of ShareGPT."""
BETWEEN = "\n\n"
"""Between an instruction and its input."""

Message = dict[str, Any]


class BadRow(Exception):
    """A row that cannot be used; the text says why."""


@dataclass(frozen=True)
class Conversation:
    """messages: {role, content, ...} as chat templates read them. learned: numbers of those that may carry loss."""

    messages: list[Message]
    learned: tuple[int, ...]

    def contents(self) -> list[str]:
        """What each turn says."""
        return [message["content"] for message in self.messages]


def read_conversation(row: Mapping[str, Any], system_prompt: str | None = None) -> Conversation:
    """A conversation of a row's cells by role: `turns`, or `prompt`, `context` and `completion`; and `system`.

    Every turn of the assistant may carry loss but those with `"weight": 0` (as OpenAI's fine-tuning data say it), and
    those that belong to a prompt. Raises BadRow.
    """
    if "turns" in row:
        turns = _turns(row["turns"], "the list of turns")
    else:
        prompt = _side(row["prompt"], "user", "the prompt", row.get("context"))
        completion = _side(row["completion"], "assistant", "the completion")
        turns = [(message, False) for message, _ in prompt] + completion
    system = row.get("system")
    if not missing(system) and system != "":
        text = _text(system, "the system prompt")
        if turns[0][0]["role"] != "system":
            turns.insert(0, ({"role": "system", "content": text}, False))
        elif turns[0][0]["content"] != text:
            raise BadRow("its system prompt differs from that of its first turn")
    elif system_prompt is not None and turns[0][0]["role"] != "system":
        turns.insert(0, ({"role": "system", "content": system_prompt}, False))
    learned = tuple(i for i, (message, may) in enumerate(turns) if may and message["role"] == "assistant")
    if not any(message["role"] == "assistant" for message, _ in turns):
        raise BadRow("no turn of the assistant")
    if not learned:
        raise BadRow("no turn of the assistant that carries loss")
    return Conversation([message for message, _ in turns], learned)


def _side(cell: Any, role: str, what: str, context: Any = None) -> list[tuple[Message, bool]]:
    """A prompt or completion: a text, or a list of turns."""
    if not isinstance(cell, str):
        return _turns(cell, what)
    parts = [cell] if missing(context) else [cell, _text(context, "the context")]
    text = BETWEEN.join(part for part in parts if part and not part.isspace())
    if not text:
        raise BadRow(f"{what} is empty")
    return [({"role": role, "content": _text(text, what)}, True)]


def _turns(cell: Any, what: str) -> list[tuple[Message, bool]]:
    """The messages of a list of turns, and whether each may carry loss."""
    turns = plain(cell)
    if isinstance(turns, str):  # a table has no lists, so they stand there as JSON
        try:
            turns = json.loads(turns)
        except ValueError:
            raise BadRow(f"{what} is {short(cell)}, not a list") from None
    if isinstance(turns, Mapping) and all(isinstance(column, list) for column in turns.values()):
        turns = [dict(zip(turns, turn, strict=False)) for turn in zip(*turns.values(), strict=False)]  # `Sequence`
    if not isinstance(turns, (list, tuple)):
        raise BadRow(f"{what} is {short(cell)}, not a list")
    found = [_turn(turn, f"turn {number}") for number, turn in enumerate(turns, 1)]
    kept = [(message, may) for message, may in found if message["role"] != "system" or message["content"]]
    if not kept:
        raise BadRow(f"{what} is empty")
    return kept


def _turn(turn: Any, what: str) -> tuple[Message, bool]:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{what} is {short(turn)}, not a dictionary")
    role_key, text_key = next((keys for keys in SPELLINGS if keys[0] in turn), SPELLINGS[0])
    if role_key not in turn:
        raise BadRow(f"{what} has no role: its keys are {listing(list(map(str, turn)))}")
    said = turn[role_key]
    role = ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        near = did_you_mean(str(said), ROLES)
        raise BadRow(f"{what} has the role {short(said)}, not one of {listing(list(ROLES), 20)}.{near}")
    content = turn.get(text_key)
    calls = turn.get("tool_calls")
    text = "" if missing(content) and calls else _text(content, what)
    if role in ("user", "assistant") and not calls and (not text or text.isspace()):
        raise BadRow(f"{what} ({role}) is empty")
    others = {key: value for key, value in turn.items() if key not in (role_key, text_key, "weight")}
    message = {"role": role, "content": text} | {key: value for key, value in others.items() if value is not None}
    return message, turn.get("weight") != 0


def _text(cell: Any, what: str) -> str:
    """A text, or the texts of a list of `{"type": "text", "text": ...}` joined."""
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(cell, (list, tuple)):
        for part in cell:
            if isinstance(part, Mapping) and part.get("type", "text") != "text":
                raise BadRow(f"{what} holds a part of type {short(part['type'])}, not text")
        cell = "".join(_text(part.get("text") if isinstance(part, Mapping) else part, what) for part in cell)
    if not isinstance(cell, str):
        raise BadRow(f"{what} says {short(cell)}, not a text")
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{what} holds half a surrogate pair, which is no character") from None
    return cell
