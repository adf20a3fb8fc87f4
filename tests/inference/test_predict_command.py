"""`lmrecipes predict`: files of every format, standard input, bad rows; in order and block by block."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from tiny import WORDS

from lmrecipes.cli import run as command
from lmrecipes.inference import batched_rows, row_tables
from lmrecipes.inference.row_predictor import answers, open_predictor
from lmrecipes.inference.row_tables import open_stream
from lmrecipes.run_folder import RunFolder

ROWS = [
    {"id": at, "text": " ".join(WORDS[at % 30 : at % 30 + 1 + at % 7]), "long_label": f"old {at}"} for at in range(30)
]
NEW = ["short_value", "long_label_2", "long_probability", "rare_labels", "rare_probabilities"]


def write(folder: Path, suffix: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".txt":
        path.write_text("".join(row["text"] + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize(
    ("suffix", "to"),
    [(".jsonl", ".jsonl"), (".csv", ".csv"), (".tsv", ".tsv"), (".parquet", ".parquet"), (".parquet", ".jsonl"),
     (".csv", ".jsonl"), (".txt", ".jsonl")],
)  # fmt: skip
def test_every_format_keeps_its_rows(made: RunFolder, tmp_path: Path, suffix: str, to: str) -> None:
    out = tmp_path / f"out{to}"
    assert command(["predict", str(made.path), str(write(tmp_path, suffix)), "--to", str(out)]) == 0
    predictor = open_predictor(made)
    values = predictor.predict(ROWS, ["short", "long", "rare"])
    long, rare = (answers(predictor.specs[task], values[task]) for task in ("long", "rare"))
    found = read(out)
    assert len(found) == len(ROWS)
    for at, (row, given) in enumerate(zip(found, ROWS, strict=True)):
        assert row["text"] == given["text"]
        label = "long_label"
        if suffix != ".txt":
            assert str(row["id"]) == str(given["id"]) and row["long_label"] == given["long_label"]
            label = "long_label_2"
        assert row[label] == long[at]["label"]
        assert float(row["long_probability"]) == pytest.approx(long[at]["probability"], abs=1e-6)
        assert float(row["short_value"]) == pytest.approx(float(values["short"][at]), abs=1e-6)
        labels = rare[at]["labels"]
        assert row["rare_labels"] == (labels if to in (".jsonl", ".parquet") else "|".join(labels))
    assert list(tmp_path.glob(".*")) == []


def test_all_probabilities(made: RunFolder, tmp_path: Path) -> None:
    for suffix in (".parquet", ".jsonl"):
        out = tmp_path / f"out{suffix}"
        args = ["--to", str(out), "--probabilities", "--task", "long", "--task", "rare"]
        assert command(["predict", str(made.path), str(write(tmp_path, suffix)), *args]) == 0
        first = read(out)[0]
        assert sum(first["long_probabilities"].values()) == pytest.approx(1)
        assert set(first["rare_probabilities"]) == {"red", "blue", "heart"}
        assert "short_value" not in first


class Given:
    """Standard input."""

    def __init__(self, text: str) -> None:
        self.buffer = io.BytesIO(text.encode())


def test_standard_input(made: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("good heart\nbad\n", '\n{"text": "good heart", "n": 1}\n{"text": "bad"}\n'):
        monkeypatch.setattr(sys, "stdin", Given(text))
        assert command(["predict", str(made.path), "--task", "short"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["text"] for row in rows] == ["good heart", "bad"]
        assert all(isinstance(row["short_value"], float) for row in rows)


def test_bad_rows(made: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    path.write_text('{"text": "good"}\n\n{"text": ""}\n{"text": "bad"}\n{"other": 1}\n')
    args = ["predict", str(made.path), str(path), "--to", str(out)]
    assert command(args) == 2
    said = capsys.readouterr().err.replace("\n", "")
    assert f"{path.name} line 3" in said and f"{path.name} line 5" in said and "line 4" not in said
    assert not out.exists() and list(tmp_path.glob(".*")) == []
    assert command([*args, "--on-bad-row", "skip"]) == 0
    assert [row["short_value"] is None for row in read(out)] == [False, True, False, True]


def test_lines_that_are_no_rows(
    made: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, out = tmp_path / "bad.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": \n{"text": ""}\n[1]\n{"text": "\xff"}\n{"text": "bad"}\n')
    args = ["predict", str(made.path), str(path), "--to", str(out), "--task", "short"]
    assert command(args) == 2
    said = capsys.readouterr().err.replace("\n", "")
    assert all(f"line {number}" in said for number in (2, 4, 5)) and "line 1" not in said and not out.exists()
    assert command([*args, "--on-bad-row", "skip"]) == 0
    assert "4 row(s) could not be read" in caplog.text
    assert [row["short_value"] is None for row in read(out)] == [False, True, True, True, True, False]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["rows.xml"], "unknown format"),
        (["missing.csv"], "no such file"),
        (["rows.parquet"], "--to"),
        (["rows.csv", "--to", "out.parquet"], ".csv"),
        (["rows.csv", "rows.jsonl"], "another format"),
        (["rows.csv", "--task", "shrot"], "Did you mean `short`"),
        (["other.csv"], "reads the columns text"),
        (["rows.csv", "--batch", "0"], "at least 1"),
        (["rows.csv", "--port", "1"], "--serve"),
        (["rows.csv", "--serve"], "each request"),
    ],
)
def test_what_is_refused(
    made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    args: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    for suffix in (".csv", ".jsonl", ".parquet"):
        write(tmp_path, suffix)
    (tmp_path / "rows.xml").write_text("<a/>")
    (tmp_path / "other.csv").write_text("words,n\na,1\n")
    assert command(["predict", str(made.path), *args]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")


def test_a_file_of_any_size_is_read_block_by_block(
    made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a block of rows is read ahead of the answers."""
    total, read_so_far, answered, ahead = 500, 0, 0, []

    def lines() -> Any:
        nonlocal read_so_far
        for at in range(total):
            read_so_far += 1
            yield json.dumps({"text": WORDS[at % 30], "n": at}).encode() + b"\n"

    predict = batched_rows.BatchedRows.predict

    def counted(self: Any, rows: Any, tasks: Any) -> Any:
        nonlocal answered
        ahead.append(read_so_far - answered)
        answered += len(rows)
        return predict(self, rows, tasks)

    monkeypatch.setattr(row_tables, "BLOCK_ROWS", 64)
    monkeypatch.setattr(batched_rows.BatchedRows, "predict", counted)
    monkeypatch.setattr(sys, "stdin", type("Given", (), {"buffer": lines()}))
    out = tmp_path / "out.jsonl"
    assert command(["predict", str(made.path), "--to", str(out), "--task", "short"]) == 0
    assert [row["n"] for row in read(out)] == list(range(total))
    assert max(ahead) <= 64 + 1


def test_a_block_is_bounded_by_its_characters_too() -> None:
    lines = [b'{"text": "' + b"x" * 2**20 + b'"}\n'] * 5
    assert [len(block.rows) for block in open_stream(iter(lines)).blocks] == [2, 2, 1]  # type: ignore[arg-type]


def test_empty_files(made: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "none.csv").write_text("text,n\n")
    for name in ("none.jsonl", "none.csv"):
        out = tmp_path / f"out-{name}"
        assert command(["predict", str(made.path), str(tmp_path / name), "--to", str(out)]) == 0
    assert (tmp_path / "out-none.jsonl").read_text() == ""
    assert (tmp_path / "out-none.csv").read_text().startswith("text,n,short_value,long_label,")


def test_several_files_are_one(made: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path, ".csv"))
    assert command(["predict", str(made.path), path, path, "--task", "short"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["id"] for row in rows] == [str(row["id"]) for row in ROWS] * 2
