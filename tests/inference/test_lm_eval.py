"""Benchmarks of lm-eval on an exported model, with task definitions of our own: the scores are the model's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exported_run import change_json, copy_of, make_exported_run
from tiny import WORDS

from lmrecipes.cli import run as command
from lmrecipes.run_folder import RunFolder

pytest.importorskip("lm_eval")
CHOICES = [
    {"question": f"{one} {two}", "choices": WORDS[at : at + 3], "answer": at % 3}
    for at, (one, two) in enumerate(zip(WORDS[:8], WORDS[8:16], strict=True))
]
TEXTS = [{"text": " ".join(WORDS[at : at + 6])} for at in range(0, 18, 3)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_exported_run(tmp_path_factory.mktemp("run"), **{"precision.compute": "fp32"})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two task definitions and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    common = {"dataset_path": "json", "test_split": "test"}
    choice = {
        "task": "tiny_choice", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer", "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    texts = {
        "task": "tiny_texts", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    }  # fmt: skip
    for task, rows in ((choice, CHOICES), (texts, TEXTS)):
        data = folder / f"{task['task']}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**task, **common, **files}))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def load(run: RunFolder) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(run.model).eval(), AutoTokenizer.from_pretrained(run.model)


def log_likelihood(model: Any, context: list[int], words: list[int]) -> float:
    """Nats of words after a context."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([context + words])).logits[0].log_softmax(-1)
    return sum(float(scores[len(context) + at - 1, word]) for at, word in enumerate(words))


def scores(answer: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in answer["rows"]}


def evaluate(run: RunFolder, tasks: Path, *flags: str) -> int:
    names = ["--lm-eval", "tiny_choice,tiny_texts", "--lm-eval-include", str(tasks)]
    return command(["evaluate", str(run.path), *names, *flags])


def expected(run: RunFolder, chat: bool = False) -> dict[tuple[str, str], float]:
    """The same from the definitions: the likeliest choice; nats of whole texts, after the start of text."""
    model, tokenizer = load(run)
    right = 0
    for row in CHOICES:
        asked = row["question"]
        if chat:
            said = [{"role": "user", "content": row["question"]}]
            asked = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        context = tokenizer(asked, add_special_tokens=False)["input_ids"]
        likelihoods = []
        for word in row["choices"]:
            whole = tokenizer(asked + ("" if chat else " ") + word, add_special_tokens=False)["input_ids"]
            likelihoods.append(log_likelihood(model, context, whole[len(context) :]))
        right += likelihoods.index(max(likelihoods)) == row["answer"]
    nats = words = size = 0.0
    for row in TEXTS:
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        nats -= log_likelihood(model, [tokenizer.bos_token_id], ids)
        words += len(row["text"].split())
        size += len(row["text"].encode())
    return {
        ("tiny_choice", "acc"): right / len(CHOICES),
        ("tiny_texts", "word_perplexity"): math.exp(nats / words),
        ("tiny_texts", "bits_per_byte"): nats / size / math.log(2),
    }


def test_scores_are_those_of_the_models_log_likelihoods(
    run: RunFolder, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, tasks, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert scores(answer) == pytest.approx(expected(run), rel=1e-4)
    assert json.loads(run.lm_eval.read_text()) == answer
    choice = next(row for row in answer["rows"] if row["task"] == "tiny_choice")
    share = choice["value"]
    assert choice["stderr"] == pytest.approx(math.sqrt(share * (1 - share) / (len(CHOICES) - 1)))
    assert (choice["samples"], choice["shots"], choice["filter"]) == (len(CHOICES), 0, "none")
    assert answer["chat_template"] is False


def test_the_chat_template_is_used_where_it_is_asked_for(
    run: RunFolder, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--lm-eval", "tiny_choice", "--lm-eval-include", str(tasks), "--lm-eval-chat-template", "--json"]
    assert command(["evaluate", str(run.path), *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["chat_template"] is True
    assert scores(answer)["tiny_choice", "acc"] == expected(run, chat=True)["tiny_choice", "acc"]


def test_a_limit_and_a_table(run: RunFolder, tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(run, tasks, "--lm-eval-limit", "2", "--lm-eval-batch", "1") == 0
    out = capsys.readouterr().out
    assert "tiny_choice" in out
    assert "word perplexity" in out
    answer = json.loads(run.lm_eval.read_text())
    assert answer["limit"] == 2
    assert {row["samples"] for row in answer["rows"]} == {2}


def refused(capfd: pytest.CaptureFixture[str], *args: str) -> str:
    assert command(["evaluate", *args]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


def test_an_unknown_task_is_named_with_the_nearest(
    run: RunFolder, tasks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks as known

    own = known.TaskManager(include_path=str(tasks), include_defaults=False)
    monkeypatch.setattr(known, "TaskManager", lambda **options: own)  # all of lm-eval's take 14 s to read
    said = refused(capfd, str(run.path), "--lm-eval", "tiny_choise", "--lm-eval-include", str(tasks))
    assert "Did you mean `tiny_choice`?" in said


def test_data_that_is_not_there(run: RunFolder, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = yaml.safe_load((tasks / "tiny_choice.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["test"] = str(tmp_path / "gone.jsonl")
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "gone.yaml").write_text(yaml.safe_dump(task))
    said = refused(capfd, str(run.path), "--lm-eval", "tiny_choice", "--lm-eval-include", str(tmp_path / "tasks"))
    assert "lm-eval-data" in said


def test_without_lm_eval(
    run: RunFolder, tasks: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmrecipes.inference.benchmarks.find_spec", lambda name: None)
    assert 'pip install "lmrecipes[lm-eval]"' in refused(capfd, str(run.path), "--lm-eval", "tiny_choice")


def test_a_run_without_tokens_and_a_run_without_a_model(
    run: RunFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = copy_of(run, tmp_path / "run")
    facts = json.loads((mine.model / "heads.json").read_text())["tasks"]
    change_json(mine.model / "heads.json", tasks={"topic": facts["topic"]})
    assert "lm-eval-kind" in refused(capfd, str(mine.path), "--lm-eval", "tiny_choice")
    (mine.model / "heads.json").unlink()
    assert "model-missing" in refused(capfd, str(mine.path), "--lm-eval", "tiny_choice")


def test_without_a_chat_template(
    run: RunFolder, tasks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mine = copy_of(run, tmp_path / "run")
    (mine.model / "chat_template.jinja").unlink()
    flags = ["--lm-eval", "tiny_choice", "--lm-eval-include", str(tasks), "--lm-eval-chat-template"]
    assert "no chat template" in refused(capfd, str(mine.path), *flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--lm-eval-limit", "3"],
        ["--lm-eval-include", "somewhere"],
        ["--lm-eval-chat-template"],
        ["--lm-eval", "tiny_choice", "--task", "law"],
        ["--lm-eval", "tiny_choice", "--data", "file.jsonl"],
        ["--lm-eval", "tiny_choice", "--lm-eval-limit", "0"],
        ["--lm-eval", ","],
        ["--lm-eval", "tiny_choice", "--lm-eval-include", "no such folder"],
    ],
)
def test_flags_that_do_not_belong_together(flags: list[str], run: RunFolder, capfd: pytest.CaptureFixture[str]) -> None:
    refused(capfd, str(run.path), *flags)
