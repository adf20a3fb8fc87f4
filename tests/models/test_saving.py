"""Whole models and adapters on disk: every architecture comes back with all its weights, tied ones stored once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_gpt import CHATML, make_gpt
from torch import Tensor

from lmrecipes.models.adapters import adapt
from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.saving import load_adapted, load_whole, merged_weights, save_adapter, save_whole, turn_end
from lmrecipes.models.trunk import Trunk
from lmrecipes.recipe import Lora

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SIZE, "model_type": "llama", "tie_word_embeddings": False},
    "llama, tied": {**SIZE, "model_type": "llama", "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97},  # Conv1D, tied
    "phi": {**SIZE, "model_type": "phi"},  # a bias on the output layer
    "opt": {**SIZE, "model_type": "opt", "ffn_dim": 64, "word_embed_proj_dim": 32},  # its base model is two levels down
    "bert": {**SIZE, "model_type": "bert"},
}
CAUSAL = [name for name in CONFIGS if name != "bert"]


def make(name: str) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(**CONFIGS[name])
    model = (AutoModel if name == "bert" else AutoModelForCausalLM).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # zero biases would hide a bias that is lost
            parameter.normal_(std=0.3)
    return model


def outputs(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=torch.arange(20)[None])[0]
    return out


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_saved_model_is_the_model(name: str, tmp_path: Path) -> None:
    model = make(name)
    wanted, weights = outputs(model), {key: value.clone() for key, value in model.state_dict().items()}
    model.config.use_cache = False
    tied = getattr(model, "lm_head", None) is not None and model.lm_head.weight is model.get_input_embeddings().weight
    if tied:
        del weights["lm_head.weight"]
    save_whole(model.bfloat16(), weights, tmp_path)  # of the model itself only class and configuration are looked at
    found = load_whole(tmp_path, name != "bert", "sdpa")
    assert torch.equal(outputs(found), wanted)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["dtype"], settings["use_cache"]) == ("float32", True)
    assert settings["architectures"] == [type(model).__name__]
    assert (tmp_path / "generation_config.json").exists() == (name != "bert")
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (name != "bert" and not tied)


def test_a_large_model_is_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmrecipes.models.saving.SHARD", "30KB")
    model = make("llama")
    save_whole(model, model.state_dict(), tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(outputs(load_whole(tmp_path, True, "sdpa")), outputs(model))


@pytest.mark.parametrize("wrong", ["missing", "unexpected", "shape"])
def test_files_that_do_not_fit_the_class_are_refused(wrong: str, tmp_path: Path) -> None:
    model = make("llama")
    weights = dict(model.state_dict())
    if wrong == "missing":
        del weights["model.norm.weight"]
    elif wrong == "unexpected":
        weights["model.surplus"] = torch.zeros(1)
    else:
        weights["model.norm.weight"] = torch.zeros(7)
    save_whole(model, weights, tmp_path)
    with pytest.raises((ValueError, RuntimeError), match=r"norm|surplus|size"):
        load_whole(tmp_path, True, "sdpa")


@pytest.mark.parametrize("kind", ["plain", "dora", "rslora"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_adapter_and_its_merged_model_are_what_was_adapted(name: str, kind: str, tmp_path: Path) -> None:
    language, base = name != "bert", make(name)
    base.save_pretrained(tmp_path / "base")
    adapted = adapt(copy.deepcopy(base), Lora(rank=4, dora=kind == "dora", rslora=kind == "rslora"), 0).eval()
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
            if "magnitude" in key:
                parameter.mul_(1.3)
    wanted = outputs(adapted)
    assert (wanted - outputs(base)).abs().max() > 0.01
    weights = {key: value for key, value in adapted.get_base_model().state_dict().items() if "lora_" in key}
    save_adapter(adapted, weights, "owner/base", tmp_path / "adapter")
    assert torch.equal(outputs(load_adapted(tmp_path / "base", tmp_path / "adapter", language, "sdpa")), wanted)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "owner/base"
    save_whole(base, merged_weights(tmp_path / "base", tmp_path / "adapter", language), tmp_path / "merged")
    found = outputs(load_whole(tmp_path / "merged", language, "sdpa"))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("own", "ends", "found"),
    [(2, [], 2), (2, [2], 2), (2, [2, 7], [2, 7]), ([2, 7], [7], [2, 7]), (None, [7], 7), (None, [7, 8], [7, 8])],
)
def test_generation_stops_where_the_training_texts_ended(own: Any, ends: list[int], found: Any, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    model = make("llama")
    model.generation_config.eos_token_id = own
    model.generation_config.temperature = 0.6  # without sampling, which `transformers` saves only where nothing changed
    save_whole(model, model.state_dict(), tmp_path, ends)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.eos_token_id, saved.temperature, saved.do_sample) == (found, 0.6, True)
    assert model.generation_config.eos_token_id == own


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML.replace("<|im_end|>", ""), None),
        (CHATML.replace("<|im_end|>", "END"), None),
        ("{% for m in messages %}{{ m['content'] | trim }}<|endoftext|>{% endfor %}", "<|endoftext|>"),
        ("{{ raise_exception('only tools may speak') }}", None),
    ],
)
def test_the_end_of_a_turn_is_the_templates(template: str, end: str | None, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(make_gpt(tmp_path))
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == ([tokenizer.convert_tokens_to_ids(end)] if end else [])


@pytest.mark.parametrize("name", CAUSAL)
def test_every_weight_of_the_whole_model_has_a_name(name: str) -> None:
    whole = make(name)
    model = MultiTaskModel(Trunk(whole, "last"), {"text": HeadSpec("language_modelling", (), (), 1.0)})
    names = model.saved_names()
    parameters = {names[key]: parameter for key, parameter in model.named_parameters()}
    state = dict(whole.named_parameters())
    assert {id(parameter) for parameter in parameters.values()} == {id(parameter) for parameter in state.values()}
    everything = dict(whole.named_parameters(remove_duplicate=False))
    assert all(everything[key] is parameter for key, parameter in parameters.items())
