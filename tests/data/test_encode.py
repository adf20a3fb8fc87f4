"""Encoded data: what the tokenizer says, made once, made again exactly when something that decides it changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from tiny import make_recipe

from lmrecipes.data import encode
from lmrecipes.data import rows as blocks
from lmrecipes.data import texts as texts_module
from lmrecipes.data.encode import encode_tasks, task_texts
from lmrecipes.data.encoded import EncodedTask
from lmrecipes.data.texts import tokenise
from lmrecipes.data.tokenizer import load_tokenizer
from lmrecipes.data.writer import SplitWriter
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe


@pytest.fixture
def place(tiny: Path, tmp_path: Path, no_assets: Path) -> Path:
    """A copy of the tiny model's tokenizer and data, to be changed; the cache is empty."""
    shutil.copytree(tiny, tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks whose rows were read."""
    names: list[str] = []
    read = encode.open_rows

    def counted(name: str, task: Any) -> Any:
        names.append(name)
        return read(name, task)

    monkeypatch.setattr(encode, "open_rows", counted)
    return names


def encoded(place: Path, **changes: Any) -> dict[str, EncodedTask]:
    return encode_tasks(Recipe.model_validate(make_recipe(place, **changes)), progress=False)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_tokens_are_the_tokenizers(place: Path) -> None:
    tasks = encoded(place)
    recipe = Recipe.model_validate(make_recipe(place))
    tokenizer = load_tokenizer(str(place / "model"))
    for name, data in task_texts(recipe).items():
        for split, examples in data.splits.items():
            found = tasks[name].splits[split]
            wanted = [tokenizer(text, truncation=True, max_length=48)["input_ids"] for text in examples.texts]
            starts = found.offsets.tolist()
            assert [found.tokens[a:b].tolist() for a, b in pairwise(starts)] == wanted
            assert found.lengths.tolist() == [len(ids) for ids in wanted]
            assert np.array_equal(found.targets, examples.targets)
            assert found.types is None
            rows = np.arange(len(examples))[::-3]
            assert found.lengths_of(rows).tolist() == found.lengths[rows].tolist()
            assert found.supervised_of(rows).tolist() == [1] * len(rows)
            counts = {"rows": len(examples), "tokens": sum(map(len, wanted)), "truncated": 0}
            assert tasks[name].counts[split] == counts | {"supervised": len(examples), "masked": 0}
    assert tasks["long"].labels == ("medicine", "other", "politics")
    assert (found.tokens.dtype, found.offsets.dtype) == (np.int32, np.int64)
    assert sum(len(split) for split in tasks["short"].splits.values()) == 300


def test_truncated_texts_are_counted(place: Path) -> None:
    whole, cut = encoded(place), encoded(place, **{"tasks.long.max_length": 16})
    for split in ("train", "validation", "test"):
        lengths = whole["long"].splits[split].lengths
        assert cut["long"].counts[split]["truncated"] == (lengths > 16).sum() > 0
        assert np.array_equal(cut["long"].splits[split].lengths, np.minimum(lengths, 16))
    assert cut["short"].counts == whole["short"].counts


@pytest.mark.parametrize("side", ["right", "left"])
def test_tokenise_is_the_tokenizers_call(place: Path, side: str) -> None:
    tokenizer = load_tokenizer(str(place / "model"))
    tokenizer.truncation_side = side
    texts, pairs = ["red blue red good bad fine", "tax", "heart lung"], ["one two three four", "war war war war", "eye"]
    for others in (None, pairs):
        found = tokenise(tokenizer, texts, others, 7)
        wanted = tokenizer(texts, others, truncation=True, max_length=7, return_token_type_ids=True)
        assert found.ids.tolist() == list(chain.from_iterable(wanted["input_ids"]))
        assert found.lengths.tolist() == [len(ids) for ids in wanted["input_ids"]]
        assert found.counts["truncated"] == (1 if others is None else 2)
        assert (found.types is None) == (others is None)
        if found.types is not None:
            assert found.types.tolist() == list(chain.from_iterable(wanted["token_type_ids"]))


def test_pairs_have_segments(place: Path) -> None:
    rows = [{"text": "good bad", "label": i, "other": "red blue one"} for i in range(100)]
    rows += [{"text": f"{word} {other}", "label": 1, "other": word} for word in ("red", "blue", "tax", "vote", "war")
             for other in ("good", "bad", "fine", "awful", "heart", "lung")]  # fmt: skip
    files = jsonl(place / "pairs.jsonl", rows)
    tasks = {"p": {"kind": "regression", "source": {"files": files, "text_pair": "other"}}}
    train = encoded(place, tasks=tasks)["p"].train
    assert train.types is not None
    assert len(train.types) == len(train.tokens)
    tokenizer = load_tokenizer(str(place / "model"))
    texts = task_texts(Recipe.model_validate(make_recipe(place, tasks=tasks)))["p"].splits["train"]
    assert texts.pairs is not None
    for i in (0, len(train) - 1):
        one = tokenizer(texts.texts[i], texts.pairs[i], return_token_type_ids=True)
        assert train.tokens[train.offsets[i] : train.offsets[i + 1]].tolist() == one["input_ids"]
        assert train.types[train.offsets[i] : train.offsets[i + 1]].tolist() == one["token_type_ids"]
        assert 1 in one["token_type_ids"]


def test_the_second_time_nothing_is_read(place: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoded(place)
    assert made == ["short", "long", "rare"]

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("the tokenizer is not needed")

    monkeypatch.setattr(encode, "load_tokenizer", refuse)
    again = encoded(place)
    assert made == ["short", "long", "rare"]
    for name, task in again.items():
        assert (task.labels, task.counts, task.skipped) == (first[name].labels, first[name].counts, first[name].skipped)
        assert np.array_equal(task.train.tokens, first[name].train.tokens)


def rewrite(place: Path) -> dict[str, Any]:
    file = place / "data" / "short.jsonl"
    file.write_text(file.read_text() + '{"text": "red", "label": 3}\n')
    return {}


def touch(place: Path) -> dict[str, Any]:
    os.utime(place / "data" / "short.jsonl", (1, 1))
    return {}


def other_tokenizer(place: Path) -> dict[str, Any]:
    file = place / "model" / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["model"]["vocab"]["extra"] = len(saved["model"]["vocab"])
    file.write_text(json.dumps(saved))
    return {}


ALL = ["short", "long", "rare"]
CHANGES: dict[str, tuple[Callable[[Path], dict[str, Any]], list[str]]] = {
    "file rewritten": (rewrite, ["short"]),
    "file touched": (touch, ["short"]),
    "tokenizer": (other_tokenizer, ALL),
    "max_length of the model": (lambda place: {"model.max_length": 32}, ALL),
    "max_length of a task": (lambda place: {"tasks.long.max_length": 32}, ["long"]),
    "labels": (lambda place: {"tasks.long.labels": ["other", "politics", "medicine"]}, ["long"]),
    "kind": (lambda place: {"tasks.short.kind": "classification"}, ["short"]),
    "fractions": (lambda place: {"tasks.rare.source.test_fraction": 0.2}, ["rare"]),
    "weights and rates": (
        lambda place: {"tasks.rare.weight": 2.0, "optimizer.lr": 1.0, "tasks.long.loss_factor": 3},
        [],
    ),
    "seed": (lambda place: {"seed": 7}, []),
    "batch and schedule": (lambda place: {"batch.examples": 8, "schedule.steps": 3, "precision.compute": "bf16"}, []),
    "metrics": (lambda place: {"tasks.short.metrics": ["pearson"], "evaluation.examples": 5}, []),
    "initialization and pooling": (lambda place: {"model.initialization": "scratch", "model.pooling": "first"}, []),
    "max_length of a task as the model's": (lambda place: {"tasks.long.max_length": 48}, []),
    "name of the run": (lambda place: {"name": "other"}, []),
    "policy for bad rows": (lambda place: {"tasks.short.source.on_bad_row": "skip"}, ["short"]),
    "group": (lambda place: {"tasks.short.source.group": "label"}, ["short"]),
    "loader": (lambda place: {"loader.workers": 0}, []),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_encodes_again(change: str, place: Path, made: list[str]) -> None:
    before = encoded(place)
    made.clear()
    alter, expected = CHANGES[change]
    after = encoded(place, **alter(place))
    assert made == expected
    if not expected:
        assert all(np.array_equal(after[name].train.tokens, before[name].train.tokens) for name in ALL)


def test_another_version_of_the_code_encodes_again(
    place: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(place)
    made.clear()
    monkeypatch.setattr(encode, "ENCODING_VERSION", encode.ENCODING_VERSION + 1)
    encoded(place)
    assert made == ALL


def test_data_that_change_while_they_are_read_are_not_kept(place: Path, no_assets: Path) -> None:
    (place / "growing_rows.py").write_text(
        "from pathlib import Path\n\ndef rows():\n"
        "    yield from ({'text': f'red {i}', 'label': i} for i in range(300))\n"
        "    if not Path('grown').exists():\n        Path('grown').touch()\n"
        "        with Path(__file__).open('a') as file:\n            file.write('# more')\n"
    )
    program = (
        "import json\nfrom pathlib import Path\nfrom lmrecipes.data.encode import encode_tasks\n"
        "from lmrecipes.recipe import Recipe\n"
        "task = encode_tasks(Recipe.model_validate(json.loads(Path('recipe.json').read_text())))['t']\n"
    )
    tasks = {"t": {"kind": "regression", "source": {"function": "growing_rows:rows"}}}
    (place / "recipe.json").write_text(json.dumps(make_recipe(place, tasks=tasks)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = [
        subprocess.run([sys.executable, "-c", program], cwd=place, env=environment, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert "tasks.t.source: its files changed while they were read" in said[0].stderr
    assert said[1].returncode == 0, said[1].stderr
    assert leftovers(no_assets) == []


def test_weights_of_the_model_do_not_encode_again(place: Path, made: list[str]) -> None:
    encoded(place)
    made.clear()
    (place / "model" / "model.safetensors").write_bytes(b"")
    assert encoded(place)
    assert made == []


def test_splits_do_not_depend_on_the_seed(place: Path) -> None:
    first, second = (task_texts(Recipe.model_validate(make_recipe(place, seed=seed))) for seed in (0, 1))
    for name in ALL:
        assert all(first[name].splits[split].texts == part.texts for split, part in second[name].splits.items())


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in (cache / "encoded").iterdir() if path.suffix != ".lock" and not complete(path)]


def complete(folder: Path) -> bool:
    return not folder.name.startswith(".") and (folder / "meta.json").is_file()


def test_an_interruption_leaves_no_half_cache(place: Path, no_assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append, calls = SplitWriter.append, 0

    def crash(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return append(*arguments)

    monkeypatch.setattr(SplitWriter, "append", crash)
    with pytest.raises(KeyboardInterrupt):
        encoded(place)
    assert calls == 3
    assert leftovers(no_assets) == []
    assert len(encoded(place)["short"].train) > 200


def test_a_process_that_is_killed_while_it_encodes(place: Path, no_assets: Path) -> None:
    (place / "slow_rows.py").write_text(
        "import time\nfrom pathlib import Path\n\ndef rows():\n    for i in range(20_000):\n"
        "        if i == 15_000 and not Path('again').exists():\n"
        "            Path('half').touch()\n            time.sleep(100)\n"
        "        yield {'text': f'red {i} good', 'label': i % 7}\n"
    )
    tasks = {"t": {"kind": "regression", "source": {"function": "slow_rows:rows"}}}
    (place / "recipe.json").write_text(json.dumps(make_recipe(place, tasks=tasks)))
    program = (
        "import json\nfrom pathlib import Path\nfrom lmrecipes.data.encode import encode_tasks\n"
        "from lmrecipes.recipe import Recipe\n"
        "task = encode_tasks(Recipe.model_validate(json.loads(Path('recipe.json').read_text())))['t']\n"
        "print(sum(counts['rows'] for counts in task.counts.values()), len(task.train.targets))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([sys.executable, "-c", program], cwd=place, env=environment)
    deadline = time.monotonic() + 60
    while not (place / "half").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    (left,) = (no_assets / "encoded").glob(".*.partial")
    assert (left / "train.tokens.npy").stat().st_size > 0, "killed in the middle"
    assert not list((no_assets / "encoded").glob("*/meta.json"))
    (place / "again").touch()
    done = subprocess.run([sys.executable, "-c", program], cwd=place, env=environment, capture_output=True, text=True)
    rows, targets = done.stdout.split()
    assert rows == "20000"
    assert 15_500 < int(targets) < 16_500
    assert leftovers(no_assets) == []


def test_what_a_killed_process_left_is_replaced(place: Path, no_assets: Path) -> None:
    wanted = encoded(place)["short"]
    folder = wanted.train.folder
    tokens = wanted.train.tokens.tolist()
    (folder / "meta.json").unlink()
    (folder / "train.tokens.npy").write_bytes(b"half")
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir()
    (partial / "train.types.npy").write_bytes(b"half")
    again = encoded(place)["short"]
    assert again.train.folder == folder
    assert again.train.tokens.tolist() == tokens
    assert again.train.types is None
    assert leftovers(no_assets) == []


def test_processes_that_race_encode_once(place: Path, no_assets: Path) -> None:
    (place / "slow_rows.py").write_text(
        "import time\nfrom pathlib import Path\n\ndef rows():\n"
        "    with Path('reads').open('a') as file:\n        file.write('x')\n    time.sleep(1)\n"
        "    return [{'text': f'red {i} good', 'label': i % 7} for i in range(300)]\n"
    )
    tasks = {"t": {"kind": "regression", "source": {"function": "slow_rows:rows"}}}
    (place / "recipe.json").write_text(json.dumps(make_recipe(place, tasks=tasks)))
    program = (
        "import json, os, time\nfrom pathlib import Path\nfrom lmrecipes.data.encode import encode_tasks\n"
        "from lmrecipes.recipe import Recipe\nimport transformers\nPath(f'ready{os.getpid()}').touch()\n"
        "while len(list(Path().glob('ready*'))) < 2: time.sleep(0.01)\n"
        "task = encode_tasks(Recipe.model_validate(json.loads(Path('recipe.json').read_text())))['t']\n"
        "print(task.counts, task.train.tokens.sum())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    racers = [
        subprocess.Popen([sys.executable, "-c", program], cwd=place, env=environment, text=True, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [racer.communicate(timeout=120)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert said[0] == said[1] != ""
    assert (place / "reads").read_text() == "x"
    assert leftovers(no_assets) == []


def test_problems_of_all_tasks_come_together(place: Path) -> None:
    jsonl(place / "data" / "long.jsonl", [{"text": "x", "label": None}] * 3)
    with pytest.raises(InputError) as caught:
        encoded(place, **{"tasks.short.source.files": "nowhere.jsonl", "tasks.rare.source.label": "lable"})
    assert [(problem.where, problem.id) for problem in caught.value.problems] == [
        ("tasks.short.source.files", "file-missing"),
        ("tasks.long.source", "bad-rows"),
        ("tasks.rare.source.label", "column-missing"),
    ]


def test_skipped_rows_are_counted(place: Path) -> None:
    with (place / "data" / "short.jsonl").open("a") as file:
        file.write('{"text": "", "label": 1}\n{"text": "red"}\n')
    task = encoded(place, **{"tasks.short.source.on_bad_row": "skip"})["short"]
    assert task.skipped == 2
    assert sum(counts["rows"] for counts in task.counts.values()) == 300


def test_rows_of_a_group_have_one_number(place: Path) -> None:
    whose = [None if i < 20 else f"w{i // 3}" for i in range(300)]
    rows = [{"text": f"row {i} of many", "label": float(i), "who": who} for i, who in enumerate(whose)]
    files = jsonl(place / "rows.jsonl", rows)
    task = encoded(place, **{"tasks.short.source": {"files": files, "group": "who"}})["short"]
    assert task.train.groups is None, "nothing reads it"
    for split in (task.splits["validation"], task.splits["test"]):
        who = [whose[int(label)] or f"alone {label}" for label in split.targets]
        assert split.groups is not None
        pairs = set(zip(who, split.groups.tolist(), strict=True))
        assert len(pairs) == len(set(who)) == len(set(split.groups.tolist()))
        assert 1 < len(pairs) < len(split)
    assert encoded(place)["short"].splits["test"].groups is None


def test_longer_than_the_model_reads(place: Path) -> None:
    with pytest.raises(InputError) as caught:
        encoded(place, **{"model.max_length": 65, "tasks.long.max_length": 200, "tasks.short.max_length": 64})
    assert [(p.where, p.what) for p in caught.value.problems] == [
        ("tasks.long.max_length", "200 tokens, but the model reads 64"),
        ("model.max_length", "65 tokens, but the model reads 64"),
    ]


def test_a_text_of_one_token_predicts_nothing(place: Path) -> None:
    changes = talks(place, [1] * 60, max_length=1)
    with pytest.raises(InputError, match=r"tasks\.t\.max_length: a text of one token predicts none"):
        encoded(place, **changes)


def test_a_text_without_any_token(place: Path) -> None:
    file = place / "model" / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["post_processor"] = None
    saved["normalizer"] = {"type": "Strip", "strip_left": True, "strip_right": True}
    saved["pre_tokenizer"] = {"type": "Split", "pattern": {"String": "~"}, "behavior": "Removed", "invert": False}
    file.write_text(json.dumps(saved))
    with (place / "data" / "short.jsonl").open("a") as rows:
        rows.write('{"text": "~~", "label": 1}\n')
    with pytest.raises(InputError, match=r"no token in 1 text\(s\) of the .* split, such as '~~'"):
        encoded(place)


@pytest.mark.parametrize("left", [[], ["config.json"], ["config.json", "model.safetensors"]])
def test_a_model_folder_without_a_tokenizer(left: list[str], place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in left:
        shutil.copy(place / "model" / file, folder)
    with pytest.raises(InputError) as caught:
        encoded(place, **{"model.pretrained": str(folder)})
    (problem,) = caught.value.problems
    assert (problem.where, problem.id) == ("model.pretrained", "model-missing")
    assert "holds no tokenizer" in problem.what


def test_a_model_name_without_a_network(place: Path) -> None:
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set") as caught:
        encoded(place, **{"model.pretrained": "nobody/no-such-model"})
    assert {problem.where for problem in caught.value.problems} == {"model.pretrained"}
    assert len(caught.value.problems) == 1, "said once, not once a task"


@pytest.mark.parametrize("bound", [{"BLOCK_ROWS": 7}, {"BLOCK_CHARACTERS": 300}, {"BLOCK_ROWS": 1}])
def test_blocks_change_nothing(
    bound: dict[str, int], place: Path, no_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes and labels of several come in another order in each split and block."""
    whole = encoded(place)
    files = {name: files_of(task) for name, task in whole.items()}
    shutil.rmtree(no_assets / "encoded")
    for constant, value in bound.items():
        monkeypatch.setattr(blocks, constant, value)
    cut = encoded(place)
    assert {name: files_of(task) for name, task in cut.items()} == files
    assert [task.labels for task in cut.values()] == [task.labels for task in whole.values()]
    assert sorted(cut["rare"].labels) == list(cut["rare"].labels) == ["blue", "heart", "red"]


def files_of(task: EncodedTask) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in task.train.folder.iterdir()}


def test_texts_are_tokenised_on_all_cores(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lmrecipes` sets TOKENIZERS_PARALLELISM=false for the processes that it forks; encoding forks none."""
    seen = []

    def look(*arguments: Any) -> Any:
        seen.append(os.environ["TOKENIZERS_PARALLELISM"])
        return tokenise(*arguments)

    monkeypatch.setattr(texts_module, "tokenise", look)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    encoded(place)
    assert set(seen) == {"true"}
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_a_function_runs_in_one_thread(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to a data base may be used in the thread that made it only."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 50)
    (place / "base_rows.py").write_text(
        "import sqlite3\n\ndef rows():\n    base = sqlite3.connect(':memory:')\n    for i in range(300):\n"
        "        yield {'text': f'red {base.execute(\"select 1\").fetchone()[0] + i}', 'label': i}\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    tasks = {"t": {"kind": "regression", "source": {"function": "base_rows:rows"}}}
    assert sum(counts["rows"] for counts in encoded(place, tasks=tasks)["t"].counts.values()) == 300


def test_duplicates_are_counted(place: Path) -> None:
    data = place / "data"
    source = {
        "train": jsonl(data / "a.jsonl", [{"text": f"red {i}", "label": 1} for i in range(50)]),
        "validation": jsonl(data / "b.jsonl", [{"text": f" RED  {i}", "label": 1} for i in range(40, 60)]),
        "test": jsonl(data / "c.jsonl", [{"text": f"Red {i % 3 + 48}", "label": 2} for i in range(9)]),
    }
    task = encoded(place, tasks={"t": {"kind": "regression", "source": {"splits": source}}})["t"]
    assert task.duplicates == {"train/validation": 10, "train/test": 6, "validation/test": 9}
    assert encoded(place)["short"].duplicates == {"train/validation": 0, "train/test": 0, "validation/test": 0}
    assert sorted(path.name for path in task.train.folder.iterdir()) == sorted(
        ["meta.json", *(f"{split}.{part}.npy" for split in source for part in ("offsets", "targets", "tokens"))]
    )


def talks(place: Path, lengths: list[int], **changes: Any) -> dict[str, Any]:
    """A recipe of one chat task; a conversation's question has so many words."""
    questions = [f"{i} " + "red " * length for i, length in enumerate(lengths)]
    rows = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "good"}]}
            for question in questions]  # fmt: skip
    files = jsonl(place / "data" / "talks.jsonl", rows)
    (place / "chat.jinja").write_text(
        "{% for m in messages %}{{ m.role }} {{ m.content }} [SEP] {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    task = {"kind": "chat", "source": {"files": files}, **changes}
    return {"tasks": {"t": task}, "model.chat_template": str(place / "chat.jinja"), "model.max_length": 24}


def other_template(place: Path) -> dict[str, Any]:
    file = place / "chat.jinja"
    file.write_text(file.read_text().replace("[SEP]", "[MASK]"))
    return {}


def test_chat_files(place: Path) -> None:
    task = encoded(place, **talks(place, [1, 2, 3] * 40))["t"]
    tokenizer = load_tokenizer(str(place / "model"))
    assert task.labels == ()
    for split, found in task.splits.items():
        counts = task.counts[split]
        assert found.loss is not None
        assert found.types is None
        assert (counts["rows"], counts["masked"], counts["truncated"]) == (len(found), 0, 0)
        assert counts["supervised"] == found.loss.sum() == found.supervised_of(np.arange(len(found))).sum()
        assert {tokenizer.decode(found.tokens[found.loss > 0][:2])} == {"good [SEP]"}
        assert found.supervised_of(np.arange(len(found))).tolist() == [2] * len(found)
        assert found.targets.tolist() == [len("good")] * len(found)
        assert (found.loss.dtype, found.targets.dtype) == (np.uint8, np.int32)
        assert not found.loss[found.offsets[:-1]].any()
    assert task.unigram == pytest.approx(np.log(2)), "two tokens, as often"


def test_language_modelling_files(place: Path) -> None:
    tasks = {"t": {"kind": "language_modelling", "max_length": 8, "source": {"files": str(place / "data/long.jsonl")}}}
    file = place / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "[SEP]"}))
    task = encoded(place, tasks=tasks)["t"]
    documents = [json.loads(line)["text"] for line in (place / "data/long.jsonl").read_text().splitlines()]
    assert sum(counts["documents"] for counts in task.counts.values()) == len(documents)
    assert sum(int(split.targets.sum()) for split in task.splits.values()) == sum(map(len, documents))
    predicted = np.concatenate([np.delete(split.tokens, split.offsets[:-1]) for split in (task.train,)])
    shares = np.bincount(predicted) / len(predicted)
    assert task.unigram == pytest.approx(-sum(share * np.log(share) for share in shares if share))
    assert task.train.loss is None
    rows = np.arange(len(task.train))
    assert task.train.supervised_of(rows).tolist() == (task.train.lengths - 1).tolist()
    assert task.counts["train"]["supervised"] == len(predicted) == task.counts["train"]["tokens"] - len(rows)
    assert task.train.lengths.max() == 8
    assert encoded(place)["short"].unigram is None


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda place: {"supervise": "last_assistant"}, True),
        (other_template, True),
        (lambda place: {"source.chat.system_prompt": "red"}, True),
        (lambda place: {"max_masked_fraction": 0.5}, False),
    ],
    ids=["supervise", "template", "system prompt", "max_masked_fraction"],
)
def test_what_encodes_conversations_again(
    change: Callable[[Path], dict[str, Any]], again: bool, place: Path, made: list[str]
) -> None:
    changes = talks(place, [1, 2, 3] * 40)
    encoded(place, **changes)
    made.clear()
    for field, value in change(place).items():
        changes[f"tasks.t.{field}"] = value
    encoded(place, **changes)
    assert made == ["t"] * again


def test_a_template_is_read_for_conversations_only(place: Path, made: list[str]) -> None:
    changes = talks(place, [1, 2, 3] * 40)
    tasks = {"short": make_recipe(place)["tasks"]["short"], **changes.pop("tasks")}
    encoded(place, tasks=tasks, **changes)
    made.clear()
    other_template(place)
    encoded(place, tasks=tasks, **changes)
    assert made == ["t"]


def test_masked_rows_are_counted_and_named(place: Path) -> None:
    task = encoded(place, **talks(place, [1] * 60 + [40] * 2 + [1] * 60))["t"]
    assert sum(counts["masked"] for counts in task.counts.values()) == 2
    assert sum(counts["rows"] for counts in task.counts.values()) == 120
    assert [place.rpartition("/")[2] for place in task.masked_places] == ["talks.jsonl line 61", "talks.jsonl line 62"]


def test_too_many_masked_rows(place: Path, made: list[str]) -> None:
    changes = talks(place, [1] * 50 + [40] * 8 + [60] * 2)
    with pytest.raises(InputError) as caught:
        encoded(place, **changes)
    (problem,) = caught.value.problems
    assert (problem.where, problem.id) == ("tasks.t.max_length", "masked-rows")
    assert "10 of 60 rows have no token of the assistant within 24 tokens" in problem.what
    assert "talks.jsonl line 51; " in problem.what
    assert "set it to 45 for 95% of the rows (65 for all), or raise tasks.t.max_masked_fraction (0.05)" in problem.fix
    made.clear()
    changes["tasks.t.max_masked_fraction"] = 0.2
    assert sum(counts["masked"] for counts in encoded(place, **changes)["t"].counts.values()) == 10
    changes["tasks.t.max_masked_fraction"] = 0.16
    with pytest.raises(InputError, match="set it to 45 for 84% of the rows"):
        encoded(place, **changes)
    assert made == [], "the encoded rows are kept, and counted again"
    assert encoded(place, **{**changes, "tasks.t.max_length": 45, "tasks.t.max_masked_fraction": 0.05})


def test_a_split_whose_rows_are_all_masked(place: Path) -> None:
    changes = talks(place, [1] * 50)
    long = talks(place, [40] * 5)["tasks"]["t"]["source"]["files"]
    Path(long).rename(place / "long.jsonl")
    talks(place, [1] * 50)
    splits = {"train": changes["tasks"]["t"]["source"].pop("files"), "test": str(place / "long.jsonl")}
    changes["tasks"]["t"] |= {"source": {"splits": splits}, "max_masked_fraction": 0.9}
    with pytest.raises(InputError, match=r"5 of 55 rows .* \(5 of test\)") as caught:
        encoded(place, **changes)
    assert "max_masked_fraction" not in caught.value.problems[0].fix


def test_bad_conversations_follow_the_sources_policy(place: Path) -> None:
    changes = talks(place, [1] * 60)
    with (place / "data" / "talks.jsonl").open("a") as file:
        file.write('{"messages": []}\n{"messages": [{"role": "usr", "content": "red"}]}\n')
    with pytest.raises(InputError, match=r"2 bad row\(s\): .*line 61: the list of turns is empty; .*line 62"):
        encoded(place, **changes)
    changes["tasks"]["t"]["source"]["on_bad_row"] = "skip"
    task = encoded(place, **changes)["t"]
    assert task.skipped == 2
    assert sum(counts["rows"] for counts in task.counts.values()) == 60


def test_documents_without_tokens_follow_the_sources_policy(place: Path) -> None:
    file = place / "model" / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["pre_tokenizer"] = {"type": "Split", "pattern": {"String": "~"}, "behavior": "Removed", "invert": False}
    file.write_text(json.dumps(saved))
    file = place / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": "[SEP]"}))
    files = jsonl(place / "x.jsonl", [{"text": "~" if i == 7 else f"red {i}"} for i in range(90)])
    tasks = {"t": {"kind": "language_modelling", "source": {"files": files}}}
    with pytest.raises(InputError, match=r"1 bad row\(s\): .*x\.jsonl line 8: the tokenizer finds no token in it"):
        encoded(place, tasks=tasks)
    tasks["t"]["source"]["on_bad_row"] = "skip"  # type: ignore[index]
    task = encoded(place, tasks=tasks)["t"]
    assert task.skipped == 1
    assert sum(counts["documents"] for counts in task.counts.values()) == 89


def test_a_tokenizer_without_what_token_tasks_need(place: Path) -> None:
    changes = talks(place, [1] * 60)
    del changes["model.chat_template"]
    changes["tasks"]["lm"] = {"kind": "language_modelling", "source": {"files": str(place / "data/long.jsonl")}}
    with pytest.raises(InputError) as caught:
        encoded(place, **changes)
    assert [(problem.where, problem.id) for problem in caught.value.problems] == [
        ("model.chat_template", "chat-template-missing"),
        ("tasks.lm", "tokenizer-no-end"),
    ]


def test_blocks_change_nothing_for_token_tasks(place: Path, no_assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = talks(place, [1, 30, 3] * 40, max_masked_fraction=0.9)
    whole = files_of(encoded(place, **changes)["t"])
    shutil.rmtree(no_assets / "encoded")
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 7)
    assert files_of(encoded(place, **changes)["t"]) == whole


def test_baselines_read_the_tasks_with_labels(place: Path) -> None:
    changes = talks(place, [1] * 60)
    tasks = {"short": make_recipe(place)["tasks"]["short"], **changes["tasks"]}
    assert list(task_texts(Recipe.model_validate(make_recipe(place, tasks=tasks)))) == ["short"]
