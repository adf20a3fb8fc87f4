"""Code and documentation of this very Python: its standard library and the topics of `help()`."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from lmrecipes.data.offline.grouping import Row, join_duplicates, pick

_NO_SOURCES = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_GENERATED = re.compile(r"generated from|auto-?generated|automatically generated|decoding_table|do not edit", re.I)
_LARGEST_FILE = 250_000  # characters
_PARAGRAPH = 60
"""Characters from which on a paragraph of the documentation is known again."""


def python_stdlib(folder: Path) -> list[Row]:
    """Files of Python's standard library, without tests and generated tables. Group: the module or package at the top,
    so that a package's files stay together (`_pydecimal` goes with `decimal`)."""
    rows = []
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).parts
        if _NO_SOURCES & set(parts) or parts[0].startswith(("config-", "sitecustomize", "usercustomize")):
            continue
        with tokenize.open(file) as stream:  # by the encoding that the file declares
            text = stream.read()
        if text.strip() and len(text) <= _LARGEST_FILE and not _GENERATED.search(text[:2000]):
            rows.append({"text": text, "group": re.sub(r"^_(py)?|\.py$", "", parts[0])})
    return join_duplicates(rows)


def python_docs(folder: Path) -> list[Row]:
    """Topics of `help()`, those that are part of a larger topic left out. Group: the topic."""
    return [{"text": text, "group": name} for name, text in _topics(folder).items()]


SYSTEM = (
    "You answer questions about Python with excerpts from its documentation.",
    "You are a Python tutor who quotes the language reference.",
    "Answer questions about Python in the words of its documentation.",
)
ABOUT_SECTION = (
    "What does Python's documentation say on this: {}?",
    "Please explain in Python: {}",
    "I am reading about Python. What should I know about {}?",
)
ABOUT_ENTRY = ("What does {} do in Python?", "How is {} used in Python?", "Explain {} to me.")
ABOUT_CHANGES = ("Has it changed over time?", "Did any version of Python change that?")
_FEWEST_WORDS, _MOST_WORDS = 12, 110
_HEADING = re.compile(r"(.+)\n([*=~^\"-])\2{3,}")
_SIGNATURE = re.compile(
    r"((?:class |async |coroutine |static |classmethod )?[A-Za-z_][\w.]*\([^\n]*\))(?: -> .*)?(?:\n|\Z)"
)
_CHANGE = re.compile(r"(?:New|Added|Changed|Deprecated|Removed) (?:in|since) version|Deprecated since")


@dataclass(frozen=True)
class Excerpt:
    """A piece of the documentation. section: the heading above it. changes: its notes on versions."""

    section: str
    question: str
    answer: str
    changes: str


def python_questions(folder: Path) -> list[Row]:
    """Questions on sections, functions and methods of Python's documentation, answered by its own words: the layout of
    OpenAI (column messages), with a system prompt, and a second question where versions differ. Group: the section, so
    that similar methods (`str.lstrip`, `str.rstrip`) stay together."""
    told: dict[str, Row] = {}
    for topic, text in _topics(folder).items():
        for excerpt in _excerpts(text):
            said = [("system", pick(SYSTEM, "python_system", excerpt.question)), ("user", excerpt.question)]
            said += [("assistant", excerpt.answer)]
            if excerpt.changes:
                said += [("user", pick(ABOUT_CHANGES, "python_changes", excerpt.question))]
                said += [("assistant", excerpt.changes)]
            messages = [{"role": role, "content": content} for role, content in said]
            told.setdefault(excerpt.answer, {"messages": messages, "group": f"{topic}: {excerpt.section}"})
    return list(told.values())


def _topics(folder: Path) -> dict[str, str]:
    """Name and text of each topic, without those that stand for the larger part in topics longer than they are."""
    tree = ast.parse((folder / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    (content,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(content)
    seen: set[str] = set()
    chosen = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        paragraphs = [" ".join(paragraph.split()) for paragraph in topics[name].split("\n\n")]
        repeated = sum(len(paragraph) for paragraph in paragraphs if paragraph in seen)
        if 2 * repeated <= sum(map(len, paragraphs)):
            chosen.add(name)
        seen.update(paragraph for paragraph in paragraphs if len(paragraph) > _PARAGRAPH)
    return {name: text.strip() for name, text in topics.items() if name in chosen}


def _excerpts(text: str) -> Iterator[Excerpt]:
    """Of each section and each function of a topic, its first paragraphs."""
    section, question, paragraphs, of_entry = "", "", list[str](), False
    for paragraph in [*re.split(r"\n{2,}", text), "The end\n======="]:
        heading = _HEADING.fullmatch(paragraph.strip("\n"))
        entry = _SIGNATURE.match(paragraph)
        if heading or entry or (of_entry and not paragraph.startswith("   ")):
            if excerpt := _excerpt(section, question, paragraphs):
                yield excerpt
            question, paragraphs, of_entry = "", [], bool(entry)
        if heading:
            section = heading[1]
            question = pick(ABOUT_SECTION, "python_section", heading[1]).format(heading[1])
        elif entry:
            question = pick(ABOUT_ENTRY, "python_entry", entry[1]).format(entry[1])
        elif question:
            paragraphs.append(dedent(paragraph) if of_entry else paragraph)


def _excerpt(section: str, question: str, paragraphs: list[str]) -> Excerpt | None:
    """Whole paragraphs, as many as `_MOST_WORDS` allow; None where too little is left."""
    changes = [paragraph for paragraph in paragraphs if _CHANGE.match(paragraph)]
    chosen: list[str] = []
    for paragraph in paragraphs:
        if paragraph not in changes:
            chosen.append(paragraph)
            if len(" ".join(chosen).split()) > _MOST_WORDS:
                chosen.pop()
                break
    while chosen and chosen[-1].endswith(":"):  # what it announces was cut off
        chosen.pop()
    if not question or len(" ".join(chosen).split()) < _FEWEST_WORDS:
        return None
    return Excerpt(section, question, "\n\n".join(chosen), "\n\n".join(changes))
