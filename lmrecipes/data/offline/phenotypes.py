"""Clinical terms of the Human Phenotype Ontology: organ systems, articles, questions (asset `hpo`)."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lmrecipes.data.offline.grouping import Row, join_duplicates, pick

_TERM = re.compile(r"^\[Term\]\n(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_SYNONYM = re.compile(r'^synonym: "((?:[^"\\]|\\.)*)" EXACT(?! obsolete_synonym)', re.MULTILINE)
_ALL_SYSTEMS = "HP:0000118"  # "Phenotypic abnormality": its children are the organ systems


@dataclass(frozen=True)
class Term:
    """A term that has a definition and belongs to an organ system. group: its first parent, see `hpo_systems`."""

    name: str
    definition: str
    synonyms: tuple[str, ...]
    comment: str
    systems: tuple[str, ...]
    group: str


def hpo_systems(folder: Path) -> list[Row]:
    """Definitions of the Human Phenotype Ontology and every organ system they belong to. Group: the first parent term.

    The definitions of siblings often differ by one word ("third finger", "fourth finger"): with each term its own
    group, 28% of the test would have a near copy (TF-IDF cosine above 0.8) in training.
    """
    return [{"text": term.definition, "label": list(term.systems), "group": term.group} for term in _terms(folder)]


def hpo_articles(folder: Path) -> list[Row]:
    """A short article on each term: its name, definition, other names and comment. Group: as in `hpo_systems`.

    A comment that several terms have is left out, since it would stand in training and test.
    """
    terms = _terms(folder)
    uses = Counter(term.comment for term in terms)
    return [{"text": _article(term, uses[term.comment] == 1), "group": term.group} for term in terms]


DEFINE = (
    ("Define the clinical term.", "{}"),
    ("Explain what this finding means, as a medical dictionary would.", "{}"),
    ("A patient's record mentions the following. What is it?", "{}"),
    ("Give a short definition of “{}”.", ""),
    ("What do clinicians mean by “{}”?", ""),
)
"""Instructions and inputs."""


def hpo_questions(folder: Path) -> list[Row]:
    """A term's definition, asked for: columns instruction, input (may be empty) and output. Group: as in
    `hpo_systems`."""
    inputs = dict(DEFINE)
    rows = []
    for term in _terms(folder):
        instruction = pick(tuple(inputs), "hpo_questions", term.name)
        asked = {"instruction": instruction.format(term.name), "input": inputs[instruction].format(term.name)}
        rows.append({**asked, "output": term.definition, "group": term.group})
    return rows


def _article(term: Term, with_comment: bool) -> str:
    also = [f"Also called: {'; '.join(term.synonyms)}."] if term.synonyms else []
    comment = [term.comment] if term.comment and with_comment else []
    return "\n\n".join([term.name, term.definition, *also, *comment])


def _terms(folder: Path) -> list[Term]:
    """In the ontology's order; terms with the same definition share a group."""
    blocks: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for block in _TERM.findall((folder / "hp.obo").read_text(encoding="utf-8")):
        if "\nis_obsolete: true" not in block:
            term = block[4:14]  # "id: HP:0000118"
            blocks[term], parents[term] = block, re.findall(r"^is_a: (HP:\d+)", block, re.MULTILINE)
    names = {term: "".join(re.findall(r"^name: (.*)$", block, re.MULTILINE)) for term, block in blocks.items()}
    systems = {term: _system_name(names[term]) for term in parents if _ALL_SYSTEMS in parents[term]}
    above: dict[str, frozenset[str]] = {}

    def systems_of(term: str) -> frozenset[str]:
        if term not in above:
            own = {systems[term]} if term in systems else set()
            above[term] = frozenset(own.union(*(systems_of(parent) for parent in parents[term])))
        return above[term]

    definitions = {term: _plain(found[1]) for term, block in blocks.items() if (found := _DEFINITION.search(block))}
    chosen = [term for term, text in definitions.items() if text and systems_of(term)]
    grouped = join_duplicates([{"text": definitions[term], "group": parents[term][0]} for term in chosen])
    return [
        Term(
            names[term], row["text"], tuple(map(_plain, _SYNONYM.findall(blocks[term]))),
            _plain("".join(re.findall(r"^comment: (.*)$", blocks[term], re.MULTILINE))),
            tuple(sorted(systems_of(term))), row["group"],
        )
        for term, row in zip(chosen, grouped, strict=True)
    ]  # fmt: skip


def _plain(text: str) -> str:
    """Without the escapes of the OBO format."""
    return " ".join(re.sub(r"\\(.)", r"\1", text.replace(r"\n", " ")).split())


def _system_name(name: str) -> str:
    """`Abnormality of the nervous system` -> `nervous system`."""
    short = re.sub(r"^(Abnormality of( the)?|Abnormal) | abnormality$", "", name)
    return short[0].lower() + short[1:]
