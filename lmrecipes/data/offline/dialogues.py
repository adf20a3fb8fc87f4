"""Short conversations in English (asset `chatterbot`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import yaml

from lmrecipes.data.offline.grouping import Row, join_duplicates

TALKS = ("conversations", "greetings", "health")
"""Files whose lists are conversations, turn by turn."""
ANSWERS = ("computers", "history", "humor", "literature", "money", "politics", "science", "tech_support")
"""Files whose lists are a question and one or several answers to it."""
SERIES = {"coding": 2, "trivia": 3}
"""Files of single questions on one theme: so many that follow each other make one conversation."""
_MOST_TURNS = 8


def chat_dialogues(folder: Path) -> list[Row]:
    """Conversations in the layout of ShareGPT: column conversations, a list of {from: human or gpt, value}. Group: the
    question, and all that share one of more than three words with it.

    Topics where the corpus speaks as a robot of its own, insults or gossips are left out, and so are repetitions.
    """
    told: dict[tuple[str, ...], Row] = {}
    for turns in _conversations(folder / "english"):
        turns = turns[: len(turns) // 2 * 2]  # the assistant has the last word
        if turns and all(re.search(r"\w", turn) for turn in turns):
            said = [{"from": ("human", "gpt")[place % 2], "value": turn} for place, turn in enumerate(turns)]
            told.setdefault(tuple(map(str.casefold, turns)), {"conversations": said, "group": turns[0].casefold()})
    return join_duplicates(list(told.values()), _long_questions)


def _long_questions(row: Row) -> list[str]:
    asked = [turn["value"] for turn in row["conversations"] if turn["from"] == "human"]
    return [question for question in asked if len(question.split()) > 3]


def _conversations(folder: Path) -> Iterator[list[str]]:
    for topic in TALKS:
        yield from (turns[:_MOST_TURNS] for turns in _read(folder, topic))
    for topic in ANSWERS:
        yield from ([question, answer] for question, *answers in _read(folder, topic) for answer in answers)
    for topic, length in SERIES.items():
        asked: dict[str, list[str]] = {}  # a question that comes again is left out
        for turns in _read(folder, topic):
            for i in range(0, len(turns) - 1, 2):
                asked.setdefault(turns[i].casefold(), turns[i : i + 2])
        apart = list(asked.values())
        yield from (list(chain(*apart[i : i + length])) for i in range(0, len(apart), length))


def _read(folder: Path, topic: str) -> list[list[str]]:
    content = yaml.safe_load((folder / f"{topic}.yml").read_text(encoding="utf-8"))
    return [[_tidy(turn) for turn in turns] for turns in content["conversations"]]


def _tidy(turn: str) -> str:
    """One line as a sentence with single spaces; several lines (code) as they are."""
    turn = turn.strip()
    return turn if "\n" in turn else " ".join(turn.split())
