"""Chapters of the King James Bible (asset `kjv`)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from lmrecipes.data.offline.grouping import Row, join_duplicates

_LONG_VERSE = 80
"""Characters from which on a verse that stands in two chapters puts them into one group: books retell each other, while
short verses ("And the LORD spake unto Moses, saying,") only repeat a formula."""


def kjv_chapters(folder: Path) -> list[Row]:
    """Each chapter: book and number, then its paragraphs. Group: chapters that share a long verse.

    The package's file is Python code; its literals are read without running it.
    """
    (call,) = (
        node.value
        for node in ast.parse((folder / "bible.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
    )
    text, starts, ends = (ast.literal_eval(argument) for argument in call.args[1:4])
    titles = call.args[5]
    assert isinstance(titles, ast.Dict)  # of names in the package to strings
    books = [ast.literal_eval(title) for title in titles.values]
    verses: dict[int, list[int]] = {}  # a verse's number is 1_000_000 * book + 1_000 * chapter + verse
    for verse in starts:
        verses.setdefault(verse // 1000, []).append(verse)
    rows = []
    for chapter, numbers in verses.items():
        title = f"{books[chapter // 1000 - 1]} {chapter % 1000}"
        body = _plain(text[starts[numbers[0]] : ends[numbers[-1]]])
        own = [_plain(text[starts[number] : ends[number]]) for number in numbers]
        rows.append({"text": f"{title}\n\n{body}", "group": title, "verses": own})
    joined = join_duplicates(rows, lambda row: [verse for verse in row["verses"] if len(verse) >= _LONG_VERSE])
    return [{"text": row["text"], "group": row["group"]} for row in joined]


def _plain(text: str) -> str:
    """Paragraphs apart by an empty line, without the brackets around the words that the translators supplied."""
    paragraphs = re.sub(r"[\[\]]", "", text).split("\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())
