"""The tokenizer of a recipe: named, or trained on the tasks' training texts, the same every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tokenizers import byte_level

from lmrecipes.data import tokenizer as module
from lmrecipes.data.encode import encode_tasks
from lmrecipes.data.tokenizer import load_tokenizer, tokenizer_of, train_tokenizer, training_sample
from lmrecipes.problems import InputError
from lmrecipes.recipe import Recipe

WORDS = ["alpha", "beta", "gamma", "delta", "omega"]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder: Path, chats: bool = True, **model: Any) -> Recipe:
    """Documents, conversations and labelled pairs, with a tokenizer trained on them."""
    texts = [{"text": f"{WORDS[i % 5]} {WORDS[i % 3]} {i}"} for i in range(200)]
    talks = [{"prompt": f"say {word} {i}", "completion": word} for i, word in enumerate(WORDS * 30)]
    pairs = [{"text": f"red {i}", "other": f"blue {i}", "label": i} for i in range(100)]
    files = {
        "docs": {"kind": "language_modelling", "source": {"files": jsonl(folder / "docs.jsonl", texts)}},
        "chat": {"kind": "chat", "source": {"files": jsonl(folder / "chat.jsonl", talks)}},
        "pairs": {
            "kind": "regression",
            "source": {"files": jsonl(folder / "pairs.jsonl", pairs), "text_pair": "other"},
        },
    }
    if not chats:
        del files["chat"]
    settings = {"config": {"model_type": "llama"}, "tokenizer_vocabulary": 512, "max_length": 64, **model}
    return Recipe.model_validate({"name": "r", "model": settings, "tasks": files})


@settings(deadline=None)
@given(st.text(max_size=80))
def test_every_text_can_be_said(text: str) -> None:
    tokenizer = byte_level()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_marks_of_texts_and_of_conversations() -> None:
    plain, chat = train_tokenizer(["alpha beta"] * 9, 512, False), train_tokenizer(["alpha beta"] * 9, 512, True)
    assert (plain.bos_token, plain.eos_token, plain.pad_token) == ("<|endoftext|>",) * 3
    assert plain.chat_template is None
    assert (chat.bos_token, chat.eos_token, chat.pad_token) == ("<|endoftext|>", "<|im_end|>", "<|endoftext|>")
    talk = [{"role": "user", "content": "alpha"}, {"role": "assistant", "content": "beta"}]
    assert chat.apply_chat_template(talk, tokenize=False) == (
        "<|im_start|>user\nalpha<|im_end|>\n<|im_start|>assistant\nbeta<|im_end|>\n"
    )
    asked = chat.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert chat.tokenize("<|im_start|>alpha<|im_end|>") == ["<|im_start|>", "alpha", "<|im_end|>"]
    assert len(train_tokenizer(["alpha beta gamma " * 9] * 9, 260, False)) == 260


def test_words_that_come_often_become_tokens(tmp_path: Path, no_assets: Path) -> None:
    folder = tokenizer_of(recipe(tmp_path))
    assert Path(folder).parent == no_assets / "tokenizers"
    tokenizer = load_tokenizer(folder)
    assert {"alpha", "Ġbeta", "say"} <= set(tokenizer.get_vocab()), "of all tasks"
    assert len(tokenizer) <= 512
    assert tokenizer.chat_template is not None


def test_it_is_trained_once_and_again_when_what_decides_it_changes(
    tmp_path: Path, no_assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, train = [], train_tokenizer

    def counted(texts: Any, size: int, chats: bool) -> Any:
        sizes.append(size)
        return train(texts, size, chats)

    monkeypatch.setattr(module, "train_tokenizer", counted)
    made = recipe(tmp_path)
    first = tokenizer_of(made)
    same = made.model_copy(update={"seed": 7, "model": made.model.model_copy(update={"max_length": 32})})
    assert tokenizer_of(same) == first
    assert sizes == [512]
    os.utime(tmp_path / "chat.jsonl", (1, 1))
    second = tokenizer_of(made)
    assert second != first, "the file was touched, so it is read again"
    assert content(Path(first)) == content(Path(second)), "the same texts give the same tokenizer"
    larger = made.model.model_copy(update={"tokenizer_vocabulary": 600})
    assert tokenizer_of(made.model_copy(update={"model": larger})) not in (first, second)
    assert sizes == [512, 512, 600]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_processes_get_the_same_bytes(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    program = (
        "import sys\nfrom lmrecipes.data.tokenizer import tokenizer_of\nfrom lmrecipes.recipe import Recipe\n"
        "print(tokenizer_of(Recipe.model_validate_json(sys.argv[1])))\n"
    )
    folders = []
    for number in range(2):
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "LMRECIPES_CACHE": str(tmp_path / f"cache{number}"),
            "PYTHONHASHSEED": str(number), "RAYON_NUM_THREADS": str(1 + number),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", program, made.model_dump_json(exclude_defaults=True)],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        folders.append(Path(done.stdout.strip().splitlines()[-1]))
    assert folders[0] != folders[1]
    assert content(folders[0]) == content(folders[1])


def test_only_training_texts_are_read(tmp_path: Path, no_assets: Path) -> None:
    made = recipe(tmp_path)
    texts = list(training_sample(made, 10**9))
    tasks = encode_tasks(made, progress=False)
    documents = sum(task.counts["train"].get("documents", task.counts["train"]["rows"]) for task in tasks.values())
    assert len(texts) == documents < 450
    assert any(text.startswith("say alpha") and text.endswith("\nalpha") for text in texts)
    assert any(text.startswith("red") and " blue" in text for text in texts)


def test_a_sample_is_bounded_fair_and_does_not_depend_on_order(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    sample = list(training_sample(made, 1500))
    by_task = [[text for text in sample if text.startswith(start)] for start in ("say", "red")]
    by_task.append([text for text in sample if not text.startswith(("say", "red"))])
    assert all(0 < sum(map(len, texts)) <= 500 for texts in by_task)
    lines = (tmp_path / "docs.jsonl").read_text().splitlines()
    (tmp_path / "docs.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert sorted(training_sample(made, 1500)) == sorted(sample)


def test_encoding_uses_it(tmp_path: Path, no_assets: Path) -> None:
    made = recipe(tmp_path)
    tasks = encode_tasks(made, progress=False)
    tokenizer = load_tokenizer(tokenizer_of(made))
    train = tasks["docs"].train
    first = tokenizer.decode(train.tokens[: train.offsets[1]])
    assert first.startswith("<|endoftext|>")
    assert first.endswith("<|im_end|>")
    assert any(word in first for word in WORDS)


def test_a_named_tokenizer(tmp_path: Path, tiny: Path) -> None:
    made = recipe(tmp_path, chats=False, tokenizer_vocabulary=0, tokenizer=str(tiny / "model"))
    assert tokenizer_of(made) == str(tiny / "model")
    absent = recipe(tmp_path, chats=False, tokenizer_vocabulary=0, tokenizer=str(tmp_path))
    with pytest.raises(InputError, match="holds no tokenizer") as caught:
        encode_tasks(absent, progress=False)
    assert [problem.where for problem in caught.value.problems] == ["model.tokenizer"]


def test_a_template_of_a_file(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    name = str(tiny / "model")
    assert load_tokenizer(name).chat_template is None
    assert load_tokenizer(name, str(tmp_path / "template.jinja")).chat_template == "{{ messages }}"
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_tokenizer(name, str(tmp_path / "absent.jinja"))
    assert caught.value.problems[0].where == "model.chat_template"


def test_bad_rows_are_said_before_training(tmp_path: Path, no_assets: Path) -> None:
    made = recipe(tmp_path)
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": ""}\n')
    with pytest.raises(InputError, match="the completion is empty"):
        tokenizer_of(made)
    assert not [path for path in (no_assets / "tokenizers").iterdir() if path.is_dir()]
