"""The language-model head: the model's own arithmetic, whatever the model, on every engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmrecipes.models.language import LanguageHead
from lmrecipes.problems import InputError

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SMALL, "intermediate_size": 48}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "llama": WIDE,
    "gemma2": {**WIDE, "num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 2.0},
    "cohere": {**WIDE, "logit_scale": 0.25},
    "granite": {**WIDE, "logits_scaling": 8.0},
    "phi": WIDE,
    "gpt_neox": {**WIDE, "tie_word_embeddings": False},
    "qwen3": {**WIDE, "num_key_value_heads": 2, "head_dim": 8},
}


def causal(kind: str) -> Any:
    """A model with large random weights and biases: every term of its logits counts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MODELS[kind], **ids))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def last_hidden(model: Any, ids: Tensor) -> Tensor:
    hidden: Tensor = model.base_model(ids).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("kind", MODELS)
def test_is_the_models_own_arithmetic(kind: str) -> None:
    model = causal(kind)
    head = LanguageHead(model)
    ids, targets, weights = torch.arange(9)[None] * 7 % 97, torch.arange(9) * 31 % 97, torch.rand(9)
    nll = F.cross_entropy(model(ids).logits[0], targets, reduction="none")
    wanted = torch.autograd.grad((nll * weights).sum(), list(model.parameters()), allow_unused=True)
    loss, found = head(last_hidden(model, ids), targets, weights)
    assert torch.allclose(found, nll.detach(), atol=1e-4)
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for name, one, right in zip(dict(model.named_parameters()), gradients, wanted, strict=True):
        assert (one is None) == (right is None), name
        assert one is None or torch.allclose(one, right, atol=1e-4 * max(1, float(right.abs().max()))), name
    scores = head(last_hidden(model, ids), model(ids).logits[0].argmax(1))
    assert (scores[:, 1] == 1).all()
    assert not scores.requires_grad


def test_a_model_without_an_output_layer_is_refused() -> None:
    from transformers import BertConfig, BertModel

    with pytest.raises(InputError, match="no linear output layer"):
        LanguageHead(BertModel(BertConfig(**WIDE)))


def test_shares_the_models_weight() -> None:
    model = causal("gpt2")
    head = LanguageHead(model)
    assert head.weight is model.get_input_embeddings().weight
    both = nn.ModuleDict({"model": model.base_model, "language": head})
    assert not [name for name, _ in both.named_parameters() if name.startswith("language")], "tied: counted once"
    untied = causal("gpt_neox")
    both = nn.ModuleDict({"model": untied.base_model, "language": LanguageHead(untied)})
    assert [name for name, _ in both.named_parameters() if name.startswith("language")] == ["language.weight"]
    both.double()
    assert both["language"].weight is untied.get_output_embeddings().weight
