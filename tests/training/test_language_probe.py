"""The start-up probe of token tasks: causal models whose loss is that of their own logits pass, others are refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM as Causal
from transformers import BertConfig, BertLMHeadModel, Gemma2Config, GPT2Config, LlamaConfig, PreTrainedModel

from lmrecipes.data.layout import Arrangement
from lmrecipes.models import attention
from lmrecipes.models.attention import Choice
from lmrecipes.models.heads import HeadSpec, head_spec
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.models.trunk import Trunk
from lmrecipes.problems import InputError
from lmrecipes.training.probe import judge_language, probe_language, probe_layout

SMALL: dict[str, Any] = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = LlamaConfig(**SMALL, num_key_value_heads=2, intermediate_size=48, initializer_range=0.3)
GPT2 = GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
GEMMA = Gemma2Config(
    **SMALL, num_key_value_heads=2, head_dim=8, intermediate_size=48, initializer_range=0.5,
    final_logit_softcapping=3.0, attn_logit_softcapping=None, query_pre_attn_scalar=8,
)  # fmt: skip
BERT = BertConfig(**SMALL, intermediate_size=48, max_position_embeddings=64, initializer_range=0.3)
SPECS = {
    "topic": head_spec("classification", ("a", "b"), torch.tensor([0, 1]).numpy()),
    "talk": HeadSpec("chat", (), (), 1.0),
    "law": HeadSpec("language_modelling", (), (), 1.0),
}


def probe(
    whole: PreTrainedModel, choice: Choice, arrangement: Arrangement, dtype: torch.dtype = torch.float32,
    change: Callable[[MultiTaskModel], None] = lambda model: None,
) -> None:  # fmt: skip
    """Probe a model as one rank would; `change` may break it."""
    attention.register()
    model = MultiTaskModel(Trunk(whole.to(dtype), "last", choice), SPECS).to(dtype).eval()
    change(model)

    def predict(batch: Any) -> Any:
        with torch.no_grad():
            return model(batch, "predictions")

    def outputs(ids: list[int]) -> torch.Tensor:
        with torch.no_grad(), model.trunk.native():
            return model.trunk.whole(input_ids=torch.tensor([ids]))[0][0].float()

    engine: Any = SimpleNamespace(
        module=model, compute_dtype=dtype, predict=predict, outputs=outputs, gather=lambda value: [None, value]
    )
    probe_language(engine, arrangement, 24, seed=3)


PADDED = (Choice("padded", "eager"), Arrangement("padded"))
PACKED = (Choice("packed", "eager"), Arrangement("packed", width=24, least=24))


def made(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = Causal.from_config(config)
    return model


@pytest.mark.parametrize("config", [LLAMA, GPT2, GEMMA], ids=["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("case", [PADDED, PACKED], ids=["padded", "packed"])
def test_causal_models_pass(config: Any, case: tuple[Choice, Arrangement]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        probe(made(config), *case, dtype)


def test_an_encoder_is_refused() -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match="see the ones after them"):
        probe(BertLMHeadModel(BERT), *PADDED)


def test_logits_with_arithmetic_of_their_own_are_refused() -> None:
    def forget(model: MultiTaskModel) -> None:
        assert model.language is not None
        assert model.language.softcap == 3.0
        model.language.softcap = None

    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(InputError, match="nats away from that of the model's own logits"):
            probe(made(GEMMA), *PACKED, dtype, change=forget)


def test_a_layout_that_shows_the_future_is_noticed() -> None:
    """The losses that the run would train on are then not those of the model's own attention."""

    def see_all(model: MultiTaskModel) -> None:
        for module in model.trunk.modules():
            if hasattr(module, "is_causal"):
                module.is_causal = False

    with pytest.raises(InputError, match=r"model\.pretrained"):
        probe(made(LLAMA), *PACKED, change=see_all)


def test_large_logits_are_no_reason_to_refuse() -> None:
    """GPT-2's are around 100, where a unit of bf16 is half a nat."""
    config = GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    for seed in range(3):
        torch.manual_seed(seed)
        model = Causal.from_config(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(12)
        probe(model, *PACKED, torch.bfloat16)


def test_the_first_token_of_a_causal_model_says_nothing() -> None:
    attention.register()
    for pooling, refused in (("first", True), ("last", False)):
        model = MultiTaskModel(Trunk(made(LLAMA), pooling, PACKED[0]), SPECS).eval()

        def vectors(texts: Any, model: MultiTaskModel = model) -> torch.Tensor:
            with torch.no_grad():
                out: torch.Tensor = model(texts)
            return out

        engine: Any = SimpleNamespace(
            module=model, compute_dtype=torch.float32, vectors=vectors, gather=lambda value: [None, value]
        )
        if refused:
            with pytest.raises(InputError, match=r"model\.pooling"):
                probe_layout(engine, PACKED[1], 24, seed=3)
        else:
            probe_layout(engine, PACKED[1], 24, seed=3)


def test_numbers_that_are_not_finite_are_refused() -> None:
    logits = torch.randn(5, 7)
    loss = torch.ones(4)
    moved = torch.cat([logits[:-1], logits[-1:] + 1])
    assert judge_language(logits, moved, loss, loss, torch.float32) is None
    for bad in ((logits * torch.nan, moved, loss, loss), (logits, moved, loss / 0, loss)):
        problem = judge_language(*bad, torch.float32)
        assert problem is not None
        assert problem.id == "head-finite"
