"""Sources: the same rows from every format, and an error that names file, row, column and fix for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import ROOT
from pyarrow import parquet

from lmrecipes.data import row_files
from lmrecipes.data import rows as blocks
from lmrecipes.data.rows import RowStream
from lmrecipes.data.sources import open_rows, source_state
from lmrecipes.problems import InputError, Problem
from lmrecipes.recipe import Source, Task, TaskKind

ROWS: list[dict[str, Any]] = [
    {"text": "first, with a comma", "label": "a", "who": "x"},
    {"text": 'a "quoted"\nsecond line', "label": "b", "who": "y"},
    {"text": "dritte Zeile: äöü", "label": "a", "who": "x"},
]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def jsonl(path: str | Path, rows: list[dict[str, Any]]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def separated(path: str, rows: list[dict[str, Any]], delimiter: str) -> None:
    import csv

    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


@dataclass
class Read:
    """All rows of a stream, and where each stands."""

    texts: list[Any] = field(default_factory=list)
    pairs: list[Any] = field(default_factory=list)
    labels: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    total: int | None = None

    def __len__(self) -> int:
        return len(self.texts)


def opened(kind: TaskKind = "classification", **source: Any) -> dict[str, RowStream]:
    return open_rows("t", Task(kind=kind, source=Source(**source)))


def read(**source: Any) -> dict[str, Read]:
    found = {}
    for split, stream in opened(**source).items():
        found[split] = all_rows = Read(total=stream.total)
        for rows in stream.blocks:
            all_rows.texts += rows.cells["text"]
            all_rows.pairs += rows.cells.get("text_pair", [])
            all_rows.labels += rows.cells["label"]
            all_rows.groups += rows.cells.get("group", [])
            all_rows.origins += [rows.origin(i) for i in range(len(rows))]
            all_rows.sizes.append(len(rows))
    return found


def problem(**source: Any) -> Problem:
    with pytest.raises(InputError) as caught:
        read(**source)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


WRITERS: dict[str, Callable[[], object]] = {
    "a.jsonl": lambda: jsonl("a.jsonl", ROWS),
    "a.csv": lambda: separated("a.csv", ROWS, ","),
    "a.tsv": lambda: separated("a.tsv", ROWS, "\t"),
    "A.CSV": lambda: separated("A.CSV", ROWS, ","),
    "a.parquet": lambda: parquet.write_table(pa.Table.from_pylist(ROWS), "a.parquet"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name: str) -> None:
    WRITERS[name]()
    rows = read(files=name, group="who", text_pair="label")["all"]
    assert rows.texts == [row["text"] for row in ROWS]
    assert rows.labels == rows.pairs == [row["label"] for row in ROWS]
    assert rows.groups == [row["who"] for row in ROWS]
    assert rows.origins[1] == name + {".jsonl": " line 2", ".parquet": " row 1"}.get(Path(name).suffix, " row 3")


@pytest.mark.parametrize("name", ["b.jsonl", "b.csv", "b.parquet"])
def test_columns_that_are_not_needed_stay_unread(name: str) -> None:
    WRITERS[f"a{Path(name).suffix}"]()
    Path(f"a{Path(name).suffix}").rename(name)
    rows = read(files=name)["all"]
    assert rows.pairs == rows.groups == []


def test_glob_in_order_with_places() -> None:
    for part, rows in {"p2": ROWS[1:], "p1": ROWS[:1], "p3": []}.items():
        jsonl(f"{part}.jsonl", rows)
    jsonl(".p0.jsonl", ROWS)
    for pattern in ("p*.jsonl", str(Path.cwd() / "p?.jsonl"), "**/p*.jsonl"):
        rows = read(files=pattern)["all"]
        assert rows.texts == [row["text"] for row in ROWS]
        assert [Path(rows.origins[i]).name for i in range(3)] == [
            "p1.jsonl line 1",
            "p2.jsonl line 1",
            "p2.jsonl line 2",
        ]


def test_a_name_with_brackets_is_a_file_first() -> None:
    jsonl("data[1].jsonl", ROWS)
    assert len(read(files="data[1].jsonl")["all"]) == 3


def test_line_numbers_count_blank_lines() -> None:
    Path("a.jsonl").write_text('\n{"text": "x", "label": 1}\n\n \n{"text": "y", "label": 2}\n\n')
    rows = read(files="a.jsonl")["all"]
    assert [rows.origins[0], rows.origins[1]] == ["a.jsonl line 2", "a.jsonl line 5"]


def test_byte_order_mark_is_no_part_of_the_first_column() -> None:
    Path("a.csv").write_bytes("text,label\nx,1\n".encode("utf-8-sig"))
    Path("a.jsonl").write_bytes('{"text": "x", "label": "1"}\n'.encode("utf-8-sig"))
    for name in ("a.csv", "a.jsonl"):
        assert read(files=name)["all"].labels == ["1"]


def test_csv_labels_are_text_whatever_they_look_like() -> None:
    Path("a.csv").write_text("text,label\na,01\nb,true\nc,2020-01-31\nd,\ne,1.50\n7,x\n")
    rows = read(files="a.csv")["all"]
    assert rows.labels == ["01", "true", "2020-01-31", "", "1.50", "x"]
    assert rows.texts[-1] == "7"


def test_splits() -> None:
    jsonl("train.jsonl", ROWS)
    jsonl("test.jsonl", ROWS[:1])
    by_split = read(splits={"train": "train.jsonl", "test": "test.jsonl"})
    assert {split: len(rows) for split, rows in by_split.items()} == {"train": 3, "test": 1}


def test_missing_file() -> None:
    jsonl("reviews.jsonl", ROWS)
    found = problem(files="review.jsonl")
    assert found.where == "tasks.t.source.files"
    assert "Did you mean `reviews.jsonl`" in found.what
    assert str(Path.cwd()) in found.what
    assert problem(files="no*.jsonl").id == "file-missing"
    assert problem(files="nowhere/a.jsonl").id == "file-missing"
    assert problem(splits={"train": "reviews.jsonl", "test": "x.jsonl"}).where == "tasks.t.source.splits.test"
    Path("folder").mkdir()
    assert "folder/*.jsonl" in problem(files="folder").fix


def test_unknown_format() -> None:
    Path("a.xlsx").write_text("")
    found = problem(files="a.xlsx")
    assert found.id == "file-format"
    assert "'.xlsx'" in found.what
    assert ".jsonl, .csv, .tsv, .parquet" in found.fix
    Path("data").write_text("")
    assert "without a suffix" in problem(files="data").what


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', "a.jsonl line 2: Expecting value (column 9)"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n["x", 1]\n', "a.jsonl line 2: not a JSON object but a list"),
        ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "\xff"}\n', "a.jsonl line 2: not UTF-8"),
        ("a.csv", b'text,label\n"x\ny",1\nx,2,3\n', "a.csv: CSV parse error: Row #3: Expected 2 columns, got 3"),
        ("a.csv", b"text,label\n" + b"x,1\n" * 9000 + b"\xff\xfe,2\n", "Row #9002: CSV conversion error"),
        ("a.csv", b"t\xff,label\nx,1\n", "can't decode byte 0xff"),
        ("a.parquet", b"PAR1 not", "a.parquet: "),
    ],
)
def test_broken_file(name: str, content: bytes, says: str) -> None:
    Path(name).write_bytes(content)
    found = problem(files=name)
    assert found.id == "file-broken"
    assert says in found.what


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "A.CSV"])
def test_missing_columns_are_named_together(name: str) -> None:
    WRITERS[name]()
    with pytest.raises(InputError) as caught:
        read(files=name, text="texte", label="lable", group="who")
    text, label = caught.value.problems
    assert (text.where, label.where) == ("tasks.t.source.text", "tasks.t.source.label")
    assert "Did you mean `text`" in text.what
    assert "it has text, label, who. Did you mean `label`" in label.what


def test_column_that_stands_twice() -> None:
    Path("a.csv").write_text("text,label,label\nx,1,2\n")
    assert problem(files="a.csv").id == "column-repeated"


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.csv", ""), ("a.csv", "text,label\n")])
def test_no_rows(name: str, content: str) -> None:
    Path(name).write_text(content)
    found = problem(files=name)
    assert found.id == "source-empty"
    jsonl("train.jsonl", ROWS)
    assert "test" in problem(splits={"train": "train.jsonl", "test": name}).what


def module(name: str, body: str) -> str:
    Path(f"{name}.py").write_text(body)
    return name


def test_function_of_the_working_directory() -> None:
    name = module(
        "rows_in_cwd", "def rows():\n    yield {'text': 'x', 'label': 1}\n    yield {'text': 'y', 'label': 2}\n"
    )
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path.cwd()))]
    rows = read(function=f"{name}:rows")["all"]
    assert rows.texts == ["x", "y"]
    assert rows.origins[1] == "rows_in_cwd:rows row 1"


def test_function_when_started_by_a_script_from_elsewhere(tmp_path: Path) -> None:
    """A console script has its own folder on the path, not the working directory."""
    module("only_here", "def rows():\n    import beside_it\n    return beside_it.ROWS\n")
    module("beside_it", "ROWS = {'train': [{'text': 'x', 'label': 1}], 'test': [{'text': 'y', 'label': 2}]}\n")
    script = tmp_path / "bin" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "from lmrecipes.data.sources import open_rows, source_state\nfrom lmrecipes.recipe import Source, Task\n"
        "source = Source(function='only_here:rows')\nassert len(source_state(source)) == 2\n"
        "print(sorted(open_rows('t', Task(kind='classification', source=source))))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout == "['test', 'train']\n", done.stderr


@pytest.mark.parametrize(
    ("body", "identity", "says"),
    [
        ("", "function-missing", "no attribute 'rows'"),
        ("rows = 3", "function-missing", "a int, not a function"),
        ("import nothing_of_this_name", "function-missing", "No module named 'nothing_of_this_name'"),
        ("def rows(): return ['text']", "row-type", "row 0 is a str, not a dictionary"),
        ("def rows(): return 5", "row-type", "gave a int, not rows"),
        ("def rows(): return []", "source-empty", "no rows"),
        ("def rows(): return {'test': [{'text': 'x', 'label': 1}]}", "split-missing", "the splits test"),
        ("def rows(): return {'train': [], 'dev': []}", "split-unknown", "the splits train, dev"),
        ("def rows(): return [{'text': 'x', 'lable': 1}]", "column-missing", "Did you mean `lable`"),
    ],
)
def test_function_mistakes(body: str, identity: str, says: str, request: pytest.FixtureRequest) -> None:
    name = module(f"mistake{request.node.callspec.indices['body']}", body)
    found = problem(function=f"{name}:rows")
    assert found.id == identity
    assert says in str(found)


def test_function_whose_module_is_missing() -> None:
    for dotted in ("no_such_module:rows", "no_such_module.inner:rows", "json.no_such:rows", "justaname", ":x"):
        found = problem(function=dotted)
        assert found.id == "function-missing"
        assert "module:function" in found.fix
        assert len(source_state(Source(function=dotted))) == 1


def test_an_error_inside_the_function_is_shown_as_it_is() -> None:
    name = module("fails_inside", "def rows():\n    raise KeyError('theirs')\n")
    with pytest.raises(KeyError, match="theirs"):
        read(function=f"{name}:rows")


def test_unknown_offline_data() -> None:
    found = problem(offline="hpo_system")
    assert found.where == "tasks.t.source.offline"
    assert "Did you mean `hpo_systems`" in found.what
    assert len(source_state(Source(offline="hpo_system"))) == 1


def test_local_dataset_folder(caplog: pytest.LogCaptureFixture) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict

    train = Dataset.from_list(ROWS).cast_column("label", ClassLabel(names=["a", "b"]))
    unlabelled = train.map(lambda row: {"label": -1})
    DatasetDict({"train": train.select([2, 0]), "test": unlabelled, "extra": train}).save_to_disk("saved")
    by_split = read(dataset="saved", group="who")
    assert sorted(by_split) == ["test", "train"]
    assert by_split["train"].texts == [ROWS[2]["text"], ROWS[0]["text"]]
    assert by_split["train"].labels == [0, 0]
    assert by_split["train"].groups == ["x", "x"]
    assert by_split["test"].labels == [None] * 3, "-1 is no class"
    assert by_split["test"].origins[2] == "saved[test] row 2"
    assert "split(s) extra of saved are not used" in caplog.text
    train.save_to_disk("one")
    assert read(dataset="one")["all"].labels == [0, 1, 0]
    assert "Did you mean `text`" in problem(dataset="one", text="texts").what


def test_local_folder_of_data_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(Path.cwd() / "hf"))
    Path("folder").mkdir()
    jsonl("folder/train.jsonl", ROWS)
    assert read(dataset="folder")["train"].texts == [row["text"] for row in ROWS]
    Path("folder/train.jsonl").write_text('{"text": 1}\n{"x\n')
    assert problem(dataset="folder").id == "dataset-missing"


@pytest.mark.parametrize("name", ["imdb", "nobody/nothing:config", "./no/such/folder"])
def test_dataset_name_without_a_network(name: str) -> None:
    """`conftest` sets HF_HUB_OFFLINE=1."""
    import datasets  # noqa: F401 - not its import is timed

    began = time.monotonic()
    found = problem(dataset=name)
    assert time.monotonic() - began < 5
    assert found.where == "tasks.t.source.dataset"
    assert f"{name!r} could not be loaded (" in found.what
    assert "HF_HUB_OFFLINE is set" in found.what
    assert "local files" in found.fix


def test_empty_dataset_folder() -> None:
    Path("folder").mkdir()
    assert "doesn't contain any data files" in problem(dataset="folder").what


def test_state_follows_the_files() -> None:
    source = Source(files="*.jsonl")
    jsonl("a.jsonl", ROWS)
    first = source_state(source)
    assert source_state(source) == first
    jsonl("b.jsonl", ROWS)
    second = source_state(source)
    assert second != first
    os.utime("b.jsonl", (1, 1))
    assert source_state(source) != second
    Path("b.jsonl").unlink()
    assert source_state(source) == first
    assert source_state(Source(files="*.jsonl", on_bad_row="skip")) != first


def test_state_follows_dataset_folder_and_module() -> None:
    Path("data set [1]/deep").mkdir(parents=True)
    jsonl("data set [1]/deep/a.jsonl", ROWS)
    assert len(source_state(Source(dataset="data set [1]"))) == 2
    name = module("state_of_module", "def rows(): return []\n")
    first = source_state(Source(function=f"{name}:rows"))
    assert len(first) == 2
    module(name, "def rows(): return [1]\n")
    assert source_state(Source(function=f"{name}:rows")) != first


def test_numpy_and_lists_survive_parquet() -> None:
    table = pa.table({"text": ["x", "y"], "label": [["a", "b"], []], "score": np.array([1, 2], np.float32)})
    parquet.write_table(table, "a.parquet")
    assert read(files="a.parquet")["all"].labels == [["a", "b"], []]
    assert read(files="a.parquet", label="score")["all"].labels == [1.0, 2.0]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_large_file_takes_time_in_proportion(suffix: str) -> None:
    """100,000 rows in 0.4 s were measured; ten times slower still passes."""
    rows = [{"text": f"some text of row {i}", "label": i % 7} for i in range(100_000)]
    if suffix == "csv":
        separated("a.csv", rows, ",")
    else:
        jsonl("a.jsonl", rows)
    began = time.process_time()
    found = read(files=f"a.{suffix}")["all"]
    assert time.process_time() - began < 4
    assert found.origins[99_999] == {"jsonl": "a.jsonl line 100000", "csv": "a.csv row 100001"}[suffix]


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("bound", [{"BLOCK_ROWS": 2}, {"BLOCK_CHARACTERS": 40}, {"BLOCK_CHARACTERS": 1}])
def test_blocks_are_bounded_and_change_nothing(
    name: str, bound: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name]()
    whole = read(files=name, group="who", text_pair="label")["all"]
    for constant, value in bound.items():
        monkeypatch.setattr(blocks, constant, value)
    cut = read(files=name, group="who", text_pair="label")["all"]
    assert whole.sizes == [3]
    assert max(cut.sizes) <= 2
    cut.sizes = whole.sizes
    assert cut == whole


def test_blocks_of_a_dataset_and_of_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    monkeypatch.setattr(blocks, "BLOCK_ROWS", 2)
    Dataset.from_list(ROWS).save_to_disk("saved")
    name = module("in_blocks", f"def rows():\n    yield from {ROWS!r}\n")
    for source in ({"dataset": "saved"}, {"function": f"{name}:rows"}):
        found = read(**source)["all"]
        assert found.texts == [row["text"] for row in ROWS]
        assert found.sizes == [2, 1]
        assert [origin.rpartition(" ")[2] for origin in found.origins] == ["0", "1", "2"]


def test_the_number_of_rows_is_known_where_it_costs_nothing() -> None:
    from datasets import Dataset

    for write in WRITERS.values():
        write()
    Dataset.from_list(ROWS).save_to_disk("saved")
    name = module("sized", f"def some(): return {ROWS!r}\ndef one_by_one(): yield from some()\n")
    known = {"files": "a.parquet", "dataset": "saved", "function": f"{name}:some"}
    assert [opened(**{place: value})["all"].total for place, value in known.items()] == [3, 3, 3]
    unknown = {"files": "a.jsonl", "function": f"{name}:one_by_one"}
    assert [opened(**{place: value})["all"].total for place, value in unknown.items()] == [None, None]
    parquet.write_table(pa.Table.from_pylist(ROWS[:1]), "b.parquet")
    assert opened(files="?.parquet")["all"].total == 4


def test_rows_are_read_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake late in the file shows when it is reached; one in any split's first block at once."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 2)
    jsonl("a.jsonl", ROWS * 2)
    with Path("a.jsonl").open("a") as file:
        file.write("broken")
    stream = opened(files="a.jsonl")["all"]
    assert len(next(stream.blocks)) == 2
    with pytest.raises(InputError, match=r"a\.jsonl line 7"):
        list(stream.blocks)
    jsonl("good.jsonl", ROWS)
    Path("bad.jsonl").write_text("broken")
    with pytest.raises(InputError, match=r"bad\.jsonl line 1"):
        opened(splits={"train": "good.jsonl", "test": "bad.jsonl"})


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python and Arrow hold of a file of 30 MB, and of one of 60 MB."""
    monkeypatch.setattr(row_files, "CSV_BLOCK", 2**17)
    held = []
    for times in (1, 2):
        rows = [{"text": f"{i} " * 100, "label": i % 7} for i in range(50_000 * times)]
        name = f"a{times}.{suffix}"
        if suffix == "csv":
            separated(name, rows, ",")
        elif suffix == "jsonl":
            jsonl(name, rows)
        else:
            parquet.write_table(pa.Table.from_pylist(rows), name, row_group_size=5_000)
        del rows
        tracemalloc.start()
        most = 0
        for block in opened(files=name)["all"].blocks:
            assert len(block) <= blocks.BLOCK_ROWS
            most = max(most, pa.total_allocated_bytes())
        held.append(tracemalloc.get_traced_memory()[1] + most)
        tracemalloc.stop()
    assert held[1] < 1.2 * held[0]
    assert held[1] < 20e6


TURNS = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "weight": 1}],
         [{"role": "user", "content": "Ü", "tool_calls": [{"function": {"name": "f"}}]}]]  # fmt: skip
NESTED: dict[str, Callable[[], dict[str, Any]]] = {
    "jsonl": lambda: {"files": jsonl("a.jsonl", [{"id": 0, "messages": turns} for turns in TURNS])},
    "parquet": lambda: (
        parquet.write_table(pa.Table.from_pylist([{"id": 0, "messages": turns} for turns in TURNS]), "a.parquet")
        or {"files": "a.parquet"}
    ),
    "dataset": lambda: saved([{"id": 0, "messages": turns} for turns in TURNS]),
    "function": lambda: {
        "function": f"{module('nested_rows', f'def rows(): return [dict(messages=t) for t in {TURNS!r}]')}:rows"
    },
}


def saved(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from datasets import Dataset

    Dataset.from_list(rows).save_to_disk("nested")
    return {"dataset": "nested"}


@pytest.mark.parametrize("place", NESTED)
def test_lists_of_turns_survive_every_source(place: str) -> None:
    """Tables give each turn the keys of all, None where it has none."""
    (stream,) = opened("chat", **NESTED[place]()).values()
    (block,) = stream.blocks
    assert set(block.cells) - {"system"} == {"turns"}
    found = [[{key: value for key, value in turn.items() if value is not None} for turn in block.row(i)["turns"]]
             for i in range(len(block))]  # fmt: skip
    assert found == TURNS


def test_turns_of_a_table_are_json() -> None:
    separated("a.csv", [{"messages": json.dumps(turns)} for turns in TURNS], ",")
    (block,) = opened("chat", files="a.csv")["all"].blocks
    assert [json.loads(cell) for cell in block.cells["turns"]] == TURNS


def test_a_text_file_is_a_document() -> None:
    Path("b.txt").write_bytes("two\r\nlines".encode("utf-8-sig"))
    Path("a.txt").write_text("Äpfel\n")
    jsonl("c.jsonl", [{"text": "third"}])
    stream = opened("language_modelling", files="[ab].txt")["all"]
    assert stream.total == 2
    (block,) = stream.blocks
    assert block.cells == {"text": ["Äpfel\n", "two\r\nlines"]}
    assert [block.origin(i) for i in range(2)] == ["a.txt", "b.txt"]
    mixed = opened("language_modelling", files="*.*")["all"]
    assert mixed.total is None
    assert [text for part in mixed.blocks for text in part.cells["text"]] == ["Äpfel\n", "two\r\nlines", "third"]
    assert problem(files="a.txt").where == "tasks.t.source.label", "no labels stand in it"
    Path("a.txt").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 \(invalid start byte at byte 2\)"):
        opened("language_modelling", files="a.txt")


def test_text_files_come_in_bounded_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_CHARACTERS", 10)
    for number in range(5):
        Path(f"{number}.txt").write_text("x" * 6)
    assert [len(block) for block in opened("language_modelling", files="*.txt")["all"].blocks] == [2, 2, 1]
