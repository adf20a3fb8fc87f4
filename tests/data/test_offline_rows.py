"""The offline data sets as they really are: how many rows, of which shape, and nothing of the test in training."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from lmrecipes import assets
from lmrecipes.data import offline
from lmrecipes.problems import InputError

ROWS = {
    "vader_valence": 23_703, "icd10_chapter": 58_665, "hpo_systems": 15_817, "sotu_era": 24_562, "sotu_party": 19_085,
    "sotu_speeches": 249, "kjv_chapters": 1_189, "hpo_articles": 15_817, "chat_dialogues": 386,
    "hpo_questions": 15_817, "icd10_questions": 11_981, "digits": 1_797,
}  # fmt: skip
FEWEST = {"python_stdlib": 400, "python_docs": 40, "python_questions": 200}
"""Of the Python that runs the tests."""
MEDIA = {"digit_images", "cheques", "cheque_amounts", "spoken_digits", "speaking_rate", "spam_mails"}
"""See test_offline_media."""
LABELS = {"icd10_chapter": 22, "hpo_systems": 23, "sotu_era": 4, "sotu_party": 2}
COLUMNS = {
    "sharegpt": {"conversations"}, "alpaca": {"instruction", "input", "output"}, "messages": {"messages"},
    "prompt_completion": {"prompt", "completion"},
}  # fmt: skip


def texts_of(row: offline.Row) -> Iterator[str]:
    """Every string of a row but its group."""

    def inside(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif not isinstance(value, float):
            for part in value.values() if isinstance(value, dict) else value:
                yield from inside(part)

    for column, value in row.items():
        if column != "group":
            yield from inside(value)


def test_no_data_set_is_left_out() -> None:
    assert set(offline.OFFLINE) == {*ROWS, *FEWEST, *MEDIA}


@pytest.mark.parametrize("name", [*ROWS, *FEWEST])
def test_real_rows(name: str) -> None:
    chosen = offline.OFFLINE[name]
    try:
        assert chosen.folder.is_dir()
    except InputError:
        if not os.environ.get("CI"):
            pytest.skip(f"asset {chosen.asset} is not in the cache: run `lmrecipes assets fetch {chosen.asset}`")
        raise
    start = time.process_time()
    rows = offline.load(name)
    assert time.process_time() - start < 5
    assert len(rows) == ROWS[name] if name in ROWS else len(rows) >= FEWEST[name]
    assert rows == offline.load(name)
    if name == "digits":
        return check_digits(rows)
    for row in rows:
        assert row["group"]
        for text in texts_of(row):
            assert text == text.strip() or chosen.asset is None  # code may end as it likes
            assert "\0" not in text
    if chosen.kind == "chat":
        assert chosen.layout is not None
        assert all(set(row) == COLUMNS[chosen.layout] | {"group"} for row in rows)
    else:
        check_texts(name, rows)
    largest = max(Counter(row["group"] for row in rows).values())
    assert largest < len(rows) * (1 / 4 if chosen.kind == "chat" or chosen.asset is None else 1 / 15)


def check_digits(rows: list[offline.Row]) -> None:
    """Scans of 28 x 28 intensities, of ten digits about equally often, no two alike."""
    assert all(len(row["ids"]) == 784 and 0 <= min(row["ids"]) <= max(row["ids"]) <= 255 for row in rows)
    assert min(Counter(row["label"] for row in rows).values()) > 170
    assert {row["label"] for row in rows} == set("0123456789")
    assert len({bytes(row["ids"]) for row in rows}) == len(rows)


def check_texts(name: str, rows: list[offline.Row]) -> None:
    """One group for a text; labels as they should be."""
    kind = offline.OFFLINE[name].kind
    group_of: dict[str, str] = {}
    for row in rows:
        assert row["text"]
        assert group_of.setdefault(row["text"].casefold(), row["group"]) == row["group"]
    if kind == "regression":
        assert all(-4 <= row["label"] <= 4 for row in rows)
    elif kind != "language_modelling":
        assert all(row["text"] == " ".join(row["text"].split()) for row in rows)
        labels = Counter(one for row in rows for one in (row["label"] if kind == "multi_label" else [row["label"]]))
        assert len(labels) == LABELS[name]
        assert all(row["label"] for row in rows)


def test_four_layouts_and_conversations_of_several_turns_with_system_prompts() -> None:
    chats = {name: chosen for name, chosen in offline.OFFLINE.items() if chosen.kind == "chat"}
    assert {chosen.layout for chosen in chats.values()} == set(COLUMNS)
    messages = [row["messages"] for row in offline.load("python_questions")]
    assert all(one[0]["role"] == "system" for one in messages)
    assert sum(len(one) > 3 for one in messages) > 30
    if assets.is_cached(assets.find("chatterbot")):
        dialogues = [row["conversations"] for row in offline.load("chat_dialogues")]
        assert sum(len(one) > 2 for one in dialogues) > 100
        assert all(one[-1]["from"] == "gpt" for one in dialogues)


def test_questions_and_articles_on_a_term_are_split_alike() -> None:
    if not assets.is_cached(assets.find("hpo")):
        pytest.skip("asset hpo is not in the cache: run `lmrecipes assets fetch hpo`")
    groups = [[row["group"] for row in offline.load(name)] for name in ("hpo_systems", "hpo_articles", "hpo_questions")]
    assert groups[0] == groups[1] == groups[2]
