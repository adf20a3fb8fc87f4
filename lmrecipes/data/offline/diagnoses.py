"""Diagnoses of ICD-10-CM and the chapters that they belong to (asset `icd10`)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

from lmrecipes.data.offline.grouping import Row, pick

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


CHAPTER_QUESTIONS = (
    "Which chapter of ICD-10-CM holds the diagnosis “{}”?",
    "Diagnosis: {}\nWhich chapter of ICD-10-CM is it in?",
    "Where in ICD-10-CM would a coder look for {}?",
    "Name the ICD-10-CM chapter for this diagnosis: {}",
)


def icd10_questions(folder: Path) -> list[Row]:
    """Questions for the chapter of a category or subcategory (codes of 3 and 4 characters), with its name and codes as
    the answer: columns prompt and completion. Group: the 3-character category, as in `icd10_chapter`."""
    rows: dict[str, Row] = {}
    for chapter in ET.parse(folder / "icd10cm.xml").getroot().iter("chapter"):
        answer = f"Chapter {chapter.findtext('name', '')}: {' '.join(chapter.findtext('desc', '').split())}."
        for code in chapter.iter("diag"):
            name, title = code.findtext("name", ""), " ".join(code.findtext("desc", "").split())
            if title and len(name.replace(".", "")) <= 4:
                question = pick(CHAPTER_QUESTIONS, "icd10_questions", title).format(title)
                rows.setdefault(title.casefold(), {"prompt": question, "completion": answer, "group": name[:3]})
    return list(rows.values())
