"""Adapters: which layers get one, that nothing else is trained, and that the start changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lmrecipes.models.adapters import adapt, adapted_layers
from lmrecipes.problems import InputError
from lmrecipes.recipe import Lora

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.arange(10)[None]


def make(kind: str) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    fields = {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4} if kind == "gpt2" else SMALL
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    cls = AutoModel if kind == "bert" else AutoModelForCausalLM
    return cls.from_config(AutoConfig.for_model(kind, **fields, **special)).eval()


LAYERS = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "bert": {"query", "key", "value", "dense"},
}


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_linear_layer_of_the_trunk(kind: str, options: dict[str, bool]) -> None:
    model, bare = make(kind), make(kind)
    adapted = adapt(model, Lora(rank=4, **options), seed=3)
    assert adapted.get_base_model() is model, "in place"
    with torch.no_grad():
        assert torch.allclose(model(IDS)[0], bare(IDS)[0], atol=1e-6), "the start changes nothing"
    with_one = {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    wanted = {n for n, m in bare.named_modules() if n.rpartition(".")[2] in LAYERS[kind] and not n.startswith("pooler")}
    assert with_one == wanted
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    factor = 32 / (4**0.5 if options.get("rslora") else 4)
    assert {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")} == {factor}
    assert any("lora_magnitude_vector" in name for name in trained) == bool(options.get("dora"))
    kinds = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "bert": "FEATURE_EXTRACTION"}
    assert adapted.peft_config["default"].task_type == kinds[kind]


def test_the_start_is_a_function_of_the_seed() -> None:
    def start(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever was drawn before
        model = make("gpt2")
        adapt(model, Lora(rank=4), seed)
        return model.transformer.h[1].mlp.c_fc.lora_A["default"].weight.detach()

    assert torch.equal(start(3), start(3))
    assert not torch.equal(start(3), start(4))


@pytest.mark.parametrize(
    ("kind", "targets", "count"),
    [
        ("llama", ("q_proj",), 2),
        ("llama", ("mlp.up_proj", "layers.1.self_attn.q_proj"), 3),
        ("bert", ("output.dense",), 4),
    ],
)
def test_named_layers_only(kind: str, targets: tuple[str, ...], count: int) -> None:
    model = make(kind)
    chosen = adapted_layers(model, Lora(rank=2, targets=targets))
    assert len(chosen) == count
    assert all(any(f".{name}".endswith(f".{target}") for target in targets) for name in chosen)
    adapt(model, Lora(rank=2, targets=targets), seed=0)
    assert {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name} == set(chosen)


def test_mistakes_have_names() -> None:
    with pytest.raises(InputError) as caught:
        adapted_layers(make("llama"), Lora(rank=40, targets=("q_porj", "lm_head", "k_proj")))
    texts = [str(problem) for problem in caught.value.problems]
    assert len(texts) == 3
    assert "'q_porj' names no linear layer of the trunk. Did you mean `q_proj`?" in texts[0]
    assert "'lm_head'" in texts[1], "the output layer gets none"
    assert "40 is above the size of 2 of the layers" in texts[2]
    assert "set it to 32 or less" in texts[2]


def test_a_rank_may_be_as_large_as_the_layer() -> None:
    assert adapted_layers(make("llama"), Lora(rank=32))
    with pytest.raises(InputError, match="33 is above"):
        adapted_layers(make("llama"), Lora(rank=33))
