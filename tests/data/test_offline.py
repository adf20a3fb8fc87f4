"""The offline data sets: small files in the assets' formats, then the real ones."""

import os
import time
from collections import Counter
from pathlib import Path

import pytest

from lmrecipes import assets
from lmrecipes.data import offline
from lmrecipes.problems import InputError

ROWS = {
    "vader_valence": 23_703,
    "icd10_chapter": 58_665,
    "hpo_systems": 15_817,
    "sotu_era": 24_562,
    "sotu_party": 19_085,
}
LABELS = {"icd10_chapter": 22, "hpo_systems": 23, "sotu_era": 4, "sotu_party": 2}


def groups(rows: list[offline.Row]) -> list[str]:
    return [row["group"] for row in rows]


def test_vader_groups_and_escapes(tmp_path: Path) -> None:
    lines = ["1_1\t-0.5\tSame  text.", "1_2\t1\tAT&amp;amp;T &amp;#38; more", "2_1\t0.25\tother", "2_2\t0\t &nbsp; "]
    (tmp_path / "amazonReviewSnippets_GroundTruth.txt").write_bytes("\r\n".join(lines).encode())
    (tmp_path / "tweets_GroundTruth.txt").write_text("1\t2\tsame text.\n2\t-4\tcafé\n", encoding="utf-8")
    rows = offline.vader_valence(tmp_path)
    assert [row["text"] for row in rows] == ["Same text.", "AT&T & more", "other", "same text.", "café"]
    assert [row["label"] for row in rows] == [-0.5, 1.0, 0.25, 2.0, -4.0]
    review, tweet = "amazonReviewSnippets-1", "tweets-2"
    assert groups(rows) == [review, review, "amazonReviewSnippets-2", review, tweet]


def test_duplicates_join_groups_transitively() -> None:
    texts = [("a", "1"), ("A", "2"), ("b", "2"), ("b", "3"), ("c", "3"), ("d", "4"), ("c", "1")]
    rows = offline._join_duplicates([{"text": text, "label": 0, "group": group} for text, group in texts])
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
    rows = offline.icd10_chapter(tmp_path)
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
    assert offline.hpo_systems(tmp_path) == [
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
    rows = offline.sotu_party(tmp_path)
    assert [len(row["text"].split()) for row in rows] == [80, 80]
    assert all(row["text"].startswith("Mr. Speaker") and row["text"].endswith('news."') for row in rows)
    assert {(row["label"], row["group"]) for row in rows} == {("Republican", "lincoln-1861")}


def test_unknown_name_and_absent_asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Did you mean `hpo_systems`"):
        offline.load("hpo_system")
    monkeypatch.setenv("LMRECIPES_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="lmrecipes assets fetch hpo"):
        offline.load("hpo_systems")


@pytest.mark.parametrize("name", list(offline.OFFLINE))
def test_real_rows(name: str) -> None:
    chosen = offline.OFFLINE[name]
    try:
        assets.locate(chosen.asset)
    except InputError:
        if not os.environ.get("CI"):
            pytest.skip(f"asset {chosen.asset} is not in the cache: run `lmrecipes assets fetch {chosen.asset}`")
        raise
    start = time.process_time()
    rows = offline.load(name)
    assert time.process_time() - start < 3
    assert len(rows) == ROWS[name]
    assert rows == offline.load(name)
    group_of: dict[str, str] = {}
    for row in rows:
        assert row["text"] == " ".join(row["text"].split()) != ""
        assert group_of.setdefault(row["text"].casefold(), row["group"]) == row["group"]
    if chosen.kind == "regression":
        assert all(-4 <= row["label"] <= 4 for row in rows)
    else:
        labels = Counter(
            one for row in rows for one in (row["label"] if chosen.kind == "multi_label" else [row["label"]])
        )
        assert len(labels) == LABELS[name]
        assert all(row["label"] for row in rows)
    assert max(Counter(groups(rows)).values()) < len(rows) / 15


def test_eras_part_the_speeches_by_year(tmp_path: Path) -> None:
    years = {1790: "before 1861", 1860: "before 1861", 1861: "1861-1913", 1913: "1861-1913", 1914: "1914-1945"}
    years |= {1945: "1914-1945", 1946: "since 1946", 2026: "since 1946"}
    (tmp_path / "speeches").mkdir()
    lines = ["fileid,year,president_id,party"]
    for year in years:
        lines.append(f"{year}-x,{year},x,Federalist")
        (tmp_path / "speeches" / f"{year}-x.txt").write_text(f"In {year} " + "word " * 70 + "ends.", encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    rows = offline.sotu_era(tmp_path)
    assert {int(row["group"].removeprefix("x-")): row["label"] for row in rows} == years
