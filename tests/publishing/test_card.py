"""The model card: the hub can read its front matter, its numbers are the run's, its code runs as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from exported_run import change_json, copy_of, make_exported_run
from huggingface_hub import ModelCard
from own_run import own_run

from lmrecipes.assets import hub_name
from lmrecipes.publishing.card import model_card, write_card
from lmrecipes.publishing.usage import usage
from lmrecipes.run_folder import RunFolder
from lmrecipes.tracking.results import number


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_exported_run(tmp_path_factory.mktemp("whole"), **{"description": "Four kinds of text."})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_exported_run(tmp_path_factory.mktemp("adapted"), lora=True)


def sections(card: str) -> dict[str, str]:
    """Text under each heading."""
    _, *parts = re.split(r"^## ", card, flags=re.MULTILINE)
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def code_of(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found.group(1)


def set_model(run: RunFolder, **changes: Any) -> None:
    recipe = yaml.safe_load(run.recipe.read_text())
    recipe["model"] |= changes
    run.recipe.write_text(yaml.safe_dump(recipe))


def test_the_front_matter_is_what_the_hub_reads(run: RunFolder) -> None:
    card = ModelCard(model_card(run, "owner/four-texts", on_hub=True))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["lmrecipes", "multi-task", "conversational"]
    assert not {"license", "language", "base_model", "datasets"} & data.keys(), "a local folder has no name on the hub"
    found = {
        (result.dataset_name, result.metric_type): (result.task_type, result.dataset_split, result.metric_value)
        for result in card.data.eval_results
    }
    scores = json.loads(run.evaluation.read_text())["tasks"]
    kind = {"topic": "text-classification"}
    assert found == {
        (task, metric): (kind.get(task, "text-generation"), "test", value)
        for task, score in scores.items()
        for metric, value in score["metrics"].items()
    }


def test_metrics_have_the_hubs_names_and_only_numbers_are_written(run: RunFolder, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    scores = json.loads(mine.evaluation.read_text())["tasks"]
    scores["topic"]["metrics"] |= {"macro_f1": 0.5, "balanced_accuracy": None}
    change_json(mine.evaluation, tasks=scores)
    types = {r.metric_type for r in ModelCard(model_card(mine, "x")).data.eval_results if r.dataset_name == "topic"}
    assert types == {"accuracy", "f1"}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"pretrained": "smollm2"}, "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ({"pretrained": "owner/some-gpt"}, "owner/some-gpt"),
        ({"pretrained": "smollm2", "initialization": "scratch"}, None),
        ({"config": {"model_type": "llama"}, "tokenizer": "smollm2"}, None),
    ],
)
def test_the_base_model_is_named_as_others_find_it(
    model: dict[str, Any], name: str | None, run: RunFolder, tmp_path: Path
) -> None:
    mine = copy_of(run, tmp_path / "run")
    set_model(mine, **model)
    text = model_card(mine, "x")
    data = ModelCard(text).data.to_dict()
    assert data.get("base_model") == name
    assert data.get("base_model_relation") == (name and "finetune")
    assert ("trained from random weights" in text) == (name is None)


def test_a_folder_has_no_name_on_the_hub(tmp_path: Path) -> None:
    assert hub_name(str(tmp_path)) is None
    assert hub_name("vader") is None, "an asset that holds data"
    assert hub_name("minilm") == "sentence-transformers/all-MiniLM-L6-v2"


def test_an_adapter_says_beside_which_weights_it_was_trained(adapted: RunFolder, tmp_path: Path) -> None:
    mine = copy_of(adapted, tmp_path / "run")
    set_model(mine, pretrained="smollm2")
    text = model_card(mine, "owner/name", adapter=True, on_hub=True)
    data = ModelCard(text).data
    assert (data.base_model, data.base_model_relation) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "adapter")
    assert 'base = AutoModelForCausalLM.from_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")' in text
    assert "by rounding" in sections(text)["Limits"]
    assert "by rounding" not in model_card(mine, "owner/name")


def test_data_sets_of_the_hub_are_linked(run: RunFolder, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    recipe = yaml.safe_load(mine.recipe.read_text())
    recipe["tasks"]["law"]["source"] = {"dataset": "owner/texts:english"}
    mine.recipe.write_text(yaml.safe_dump(recipe))
    text = model_card(mine, "x")
    data = ModelCard(text).data
    assert data.datasets == ["owner/texts"]
    law = next(result for result in data.eval_results if result.dataset_name == "law")
    assert (law.dataset_type, law.dataset_config) == ("owner/texts", "english")
    assert "[owner/texts:english](https://huggingface.co/datasets/owner/texts)" in sections(text)["Training data"]


def test_it_says_what_happened(run: RunFolder) -> None:
    text = model_card(run, "x")
    parts = sections(text)
    assert list(parts) == ["Use", "Results", "Training data", "Training", "Limits"]
    assert "Four kinds of text." in text
    values = f"**{number(12.5)}** | {number(25.0)} | 20"
    assert f"| `law` | language modelling | perplexity | {values} |" in parts["Results"]
    assert "before training" in parts["Results"]
    assert "| `verse` | `verse.jsonl` | 64 | 32 | 0.50 | 4,936 | 20.0% |" in parts["Training data"]
    assert "2 steps of 16 examples, 24,680 tokens, 1 min 1 s" in parts["Training"]
    assert "2 x cpu (A CPU), ZeRO 2, bf16" in parts["Training"]
    assert "torch 2.13.0, transformers 5.23.0, commit abc123" in parts["Training"]
    assert "training rows of law." in parts["Limits"]
    recipe = re.search(r"```yaml\n(.*?)```", parts["Training"], re.DOTALL)
    assert recipe is not None
    assert yaml.safe_load(recipe.group(1)) == yaml.safe_load(run.recipe.read_text())


@pytest.mark.parametrize(
    ("compute", "autocast", "said"),
    [
        ("fp32", False, "fp32. Stored in fp32"),
        ("bf16", True, "bf16 products, weights cast at each product"),
        ("bf16", False, "bf16 products, weights beside fp32 master weights"),
    ],
)
def test_it_says_in_which_precision(compute: str, autocast: bool, said: str, run: RunFolder, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    change_json(mine.model / "heads.json", compute=compute, autocast=autocast)
    assert said in sections(model_card(mine, "x"))["Training"]


def test_benchmarks_stand_with_the_results(run: RunFolder, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "run")
    row = {"task": "choices", "metric": "acc_norm", "value": 0.5, "stderr": 0.125}
    mine.lm_eval.write_text(json.dumps({"lm_eval": "0.4.13", "limit": 7, "chat_template": True, "rows": [row]}))
    results = sections(model_card(mine, "x"))["Results"]
    assert "| `choices` | acc norm | 0.500 | 0.125 |" in results
    assert "lm-eval 0.4.13, with the chat template, the first 7 of each task." in results


@pytest.mark.parametrize("kind", ["whole", "merged", "adapter"])
def test_the_code_runs_as_it_stands(
    kind: str, run: RunFolder, adapted: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lmrecipes.publishing.export import ExportOptions, export_run

    to = tmp_path / "model"
    export_run(ExportOptions(run.path if kind == "whole" else adapted.path, to, adapter=kind == "adapter"))
    text = (to / "README.md").read_text()
    scope: dict[str, Any] = {}
    exec(code_of(text), scope)
    assert "tensor([[" in capsys.readouterr().out, "logits of the labels"
    ids = torch.arange(20)[None]
    with torch.no_grad():
        found = scope["model"](input_ids=ids).logits
    from transformers import AutoModelForCausalLM

    wanted = AutoModelForCausalLM.from_pretrained((run if kind == "whole" else adapted).model)(input_ids=ids).logits
    assert (found - wanted).abs().max() < 1e-4
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == ("peft" if kind == "adapter" else "transformers")
    assert ("lora" in data["tags"]) == (kind != "whole")


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_the_heads_read_what_they_were_trained_on(pooling: str, run: RunFolder, tmp_path: Path) -> None:
    """The code's logits are those of the exported model as we read it ourselves."""
    from lmrecipes.data.batches import Bucket
    from lmrecipes.inference.exported import load_exported
    from lmrecipes.models.heads import Head

    mine = copy_of(run, tmp_path / "run")
    change_json(mine.model / "heads.json", pooling=pooling)
    scope: dict[str, Any] = {}
    facts = json.loads((mine.model / "heads.json").read_text())
    code = code_of(usage(facts, str(mine.model), None, False))
    exec(code.replace("print(pooled @", "found = (pooled @"), scope)
    model = load_exported(mine.model).model
    with torch.no_grad(), model.trunk.native():
        bucket = [Bucket(scope["inputs"].input_ids, scope["inputs"].attention_mask, None)]
        head = model.heads["topic"]
        assert isinstance(head, Head)
        wanted = head(model(bucket))
    assert (scope["found"] - wanted).abs().max() < 1e-4


def test_code_for_the_hub_downloads_the_heads(run: RunFolder) -> None:
    facts = json.loads((run.model / "heads.json").read_text())
    code = code_of(usage(facts, "owner/name", None, True))
    assert 'Path(snapshot_download("owner/name"))' in code
    compile(code, "card", "exec")


def test_a_run_ends_with_its_card(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder's, from the command line; its code is for the working directory of the run."""
    run = own_run(tiny)
    text = (run / "model" / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.pipeline_tag, data.tags) == ("feature-extraction", ["lmrecipes", "multi-task"])
    scores = json.loads((run / "evaluation.json").read_text())["tasks"]
    assert {result.dataset_name for result in data.eval_results} == scores.keys()
    monkeypatch.chdir(run.parent.parent)
    exec(code_of(text), {})
    assert "tensor([[" in capsys.readouterr().out


def test_a_run_without_a_model_gets_no_card(tmp_path: Path, run: RunFolder) -> None:
    mine = copy_of(run, tmp_path / "run")
    (mine.model / "heads.json").unlink()
    write_card(mine)
    assert not (mine.model / "README.md").exists()
    write_card(run)
    assert (run.model / "README.md").read_text().startswith("---\n")
