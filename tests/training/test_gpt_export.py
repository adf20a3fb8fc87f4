"""Exported language models, of every engine and with adapters: `transformers` and `peft` load the live model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run
from made_runs import Runs, engine_config, run_cases
from tiny_gpt import make_gpt, make_gpt_recipe

from lmrecipes.data.encode import encode_tasks
from lmrecipes.problems import InputError
from lmrecipes.recipe_files import recipe_from_yaml

TOKEN_TASKS = ("law", "verse", "talk")
NLL = {
    "plain_lora": 1e-5,
    "untied": 1e-5,
    "ddp": 1e-5,
    "zero0": 0.3,
    "zero2": 0.3,
    "zero2_lora": 0.3,
    "zero3": 0.3,
    "dora3": 0.3,
}
"""Nats by which `transformers` in fp32 may differ from the live model, which ZeRO computes in bf16."""
ADAPTERS = ("plain_lora", "zero2_lora", "dora3")


@pytest.fixture(scope="module")
def runs(run: Run, tiny_gpt: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("gpt_runs")
    common: dict[str, Any] = {"schedule.steps": 4, "batch.micro_examples": 4, "evaluation.examples": 20}
    bf16 = {**common, "precision.compute": "bf16"}
    lora = {"model.lora": {"rank": 4}, "optimizer.lr": 0.05}  # a rate at which four steps are seen
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    (folder / "template.jinja").write_text(template)  # where the runs start
    untied = {"model.pretrained": str(make_gpt(tiny_gpt / "untied", tied=False))}

    def case(name: str, changes: dict[str, Any], zero: int | None = None, **more: Any) -> dict[str, Any]:
        recipe = make_gpt_recipe(tiny_gpt, **changes)
        deepspeed = engine_config(recipe, zero, 2) if zero is not None else None
        return {"name": name, "run": name, "recipe": recipe, "deepspeed": deepspeed, **more}

    dora = {**bf16, **lora, "model.lora": {"rank": 4, "dora": True}}
    said = run_cases(
        run, folder, 2,
        [
            case("ddp", common),
            case("zero2", bf16, 2),
            case("zero2_lora", {**bf16, **lora}, 2),
            case("distorted", bf16, 2, distort=0.05),
            case("mended", bf16, 2, run="distorted", resume=True),
            case("zero3", {**bf16, **untied}, 3),  # zero.Init changes the process: last
            case("dora3", dora, 3),
        ],
    )  # fmt: skip
    said |= run_cases(
        run, folder, 1,
        [
            case("plain_lora", {**common, **lora}),
            case("untied", {**common, **untied, "model.chat_template": "template.jinja"}),
            case("zero0", bf16, 0),  # DeepSpeed's autocast stays on in its process: last
        ],
    )  # fmt: skip
    assert [name for name, outcome in said.items() if "failed" in outcome] == ["distorted"], said
    return Runs(folder, said)


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=torch.arange(40)[None]).logits[0]
    return out


@pytest.mark.parametrize("name", list(NLL))
def test_transformers_loads_it_and_scores_tokens_as_the_live_model_did(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs.folder)
    model = load(runs[name] / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    live = json.loads((runs.folder / f"{name}.predictions.json").read_text())
    tasks = encode_tasks(recipe_from_yaml(runs[name] / "recipe.yaml"))
    for task in TOKEN_TASKS:
        split, found = tasks[task].splits["test"], []
        for row in range(min(8, len(split))):
            text = slice(split.offsets[row], split.offsets[row + 1])
            ids = torch.from_numpy(split.tokens[text].astype(np.int64))
            learned = torch.ones(len(ids)) if split.loss is None else torch.from_numpy(split.loss[text].copy())
            with torch.no_grad():
                scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
            nll = -scores[:-1].gather(1, ids[1:, None])[:, 0]
            found += nll[learned[1:].bool()].tolist()
        assert np.abs(np.array(found) - np.array(live[task])[:, 0]).max() <= NLL[name]


@pytest.mark.parametrize("name", list(NLL))
def test_it_generates_with_a_cache_and_stores_tied_weights_once(name: str, runs: Runs) -> None:
    from safetensors.torch import load_file

    model, tied = load(runs[name] / "model"), name not in ("untied", "zero3")
    assert model.config.use_cache
    assert model.config.tie_word_embeddings is tied
    assert ("lm_head.weight" in load_file(runs[name] / "model" / "model.safetensors")) is not tied
    prompt = torch.tensor([[1, 2, 3]])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False)
    assert out.shape[1] > 3


@pytest.mark.parametrize("name", ADAPTERS)
def test_peft_loads_the_adapter_and_merging_changes_nothing(name: str, runs: Runs) -> None:
    from peft import PeftModel

    recipe = recipe_from_yaml(runs[name] / "recipe.yaml")
    folder = runs[name] / "model" / "adapter"
    base = logits(load(Path(recipe.model.pretrained)))
    adapted = logits(PeftModel.from_pretrained(load(Path(recipe.model.pretrained)), str(folder)).eval())
    merged = logits(load(runs[name] / "model"))
    assert (adapted - merged).abs().max() < 1e-5
    assert (adapted - base).abs().max() > 0.1
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == recipe.model.pretrained
    assert (settings["r"], settings["use_dora"]) == (4, name == "dora3")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_model_without_adapters_has_no_adapter_folder(runs: Runs) -> None:
    assert not (runs["zero2"] / "model" / "adapter").exists()


def test_the_tokenizer_brings_the_recipes_chat_template(runs: Runs) -> None:
    from transformers import AutoTokenizer

    said = [{"role": "user", "content": "tax"}]
    texts = {
        name: AutoTokenizer.from_pretrained(runs[name] / "model").apply_chat_template(said, tokenize=False)
        for name in ("ddp", "untied")
    }
    assert texts == {"ddp": "<|im_start|>user\ntax<|im_end|>\n", "untied": "<|im_start|>tax<|im_end|>"}


@pytest.mark.parametrize("name", ["untied", "zero2"])
def test_evaluate_repeats_the_final_evaluation(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the order of sums, which depends on the number of threads; from another working directory than the run's."""
    from lmrecipes.cli import run as command

    assert command(["evaluate", str(runs[name]), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)["tasks"]
    then = json.loads((runs[name] / "evaluation.json").read_text())["tasks"]
    assert again.keys() == then.keys()
    for task, score in then.items():
        assert again[task]["rows"] == score["rows"]
        assert again[task]["loss"] == pytest.approx(score["loss"], abs=1e-4)
        assert again[task]["metrics"] == pytest.approx(score["metrics"], rel=1e-4)


def test_evaluate_reads_a_file_of_new_texts(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexity over the texts' tokens and their end, each after the start of text."""
    from transformers import AutoTokenizer

    from lmrecipes.cli import run as command

    texts, nats, count = ["tax vote war peace", "law", "heart lung eye bone fever rash"], 0.0, 0
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model, tokenizer = load(runs["untied"] / "model"), AutoTokenizer.from_pretrained(runs["untied"] / "model")
    for text in texts:
        words = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([tokenizer.bos_token_id, *words, tokenizer.eos_token_id])
        with torch.no_grad():
            scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        nats -= float(scores[:-1].gather(1, ids[1:, None]).sum())
        count += len(ids) - 1
    flags = ["--task", "verse", "--data", str(tmp_path / "new.jsonl"), "--json"]
    assert command(["evaluate", str(runs["untied"]), *flags]) == 0
    found = json.loads(capsys.readouterr().out)["tasks"]
    assert found.keys() == {"verse"}
    assert found["verse"]["metrics"]["perplexity"] == pytest.approx(np.exp(nats / count), rel=1e-4)
    size = sum(len(text.encode()) for text in texts)
    assert found["verse"]["metrics"]["bits_per_byte"] == pytest.approx(nats / size / np.log(2), rel=1e-4)


def test_every_model_was_compared_with_the_live_one(runs: Runs) -> None:
    for name in NLL:
        verified = json.loads((runs[name] / "model" / "heads.json").read_text())["verified"]
        assert verified["tokens"] == 48
        assert list(verified["deviation"]) == (["adapter", "model"] if name in ADAPTERS else ["model"])
        assert all(far <= 1e-3 for far in verified["deviation"].values()), (name, verified)


def test_a_model_that_is_not_the_live_one_fails_the_run_and_is_not_published(runs: Runs) -> None:
    said = runs.said["distorted"]
    assert said["failed"] == "RunFailed"
    assert "deviate by 0.05" in said["message"]
    assert "step-00000004" in said["message"]
    assert "checkpoints" in said["left"]
    assert not [name for name in said["left"] if name.startswith(("model", "evaluation"))]


def test_such_a_run_can_be_finished_from_its_checkpoint(runs: Runs) -> None:
    mended, zero2 = (json.loads((runs[name] / "evaluation.json").read_text()) for name in ("distorted", "zero2"))
    assert mended["tasks"] == zero2["tasks"]
    assert json.loads((runs["distorted"] / "model" / "heads.json").read_text())["verified"]["deviation"] == {
        "model": 0.0
    }


def test_a_folder_without_its_parts_is_refused(runs: Runs, tmp_path: Path) -> None:
    import shutil

    from lmrecipes.inference.exported import load_exported

    for gone in ("heads.json", "heads.safetensors", "config.json", "model.safetensors"):
        folder = tmp_path / gone
        shutil.copytree(runs["ddp"] / "model", folder)
        (folder / gone).unlink()
        with pytest.raises(InputError) as raised:
            load_exported(folder)
        assert gone.partition(".")[0] in str(raised.value)
