"""A recipe's model from a configuration, with a language-model head, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmrecipes.models.heads import HeadSpec
from lmrecipes.models.loading import load_trunk, require_positions
from lmrecipes.models.multitask import MultiTaskModel
from lmrecipes.problems import InputError
from lmrecipes.recipe import Lora, Model
from lmrecipes.training.flops import parameters_of, training_flops_per_token

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
SPECS = {"law": HeadSpec("language_modelling", (), (), 1.0)}


def made(tiny_gpt: Path, seed: int = 0, **config: Any) -> Any:
    tokenizer = str(tiny_gpt / "model")
    return load_trunk(Model(config=config, tokenizer=tokenizer), seed, language=True, tokenizer=tokenizer)


def said(tiny_gpt: Path, **config: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        made(tiny_gpt, **config)
    return [str(problem) for problem in caught.value.problems]


def test_a_configuration_knows_the_tokens_of_its_tokenizer(tiny_gpt: Path) -> None:
    config = made(tiny_gpt, model_type="llama", **SMALL).whole.config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (320, 0, 2, 0)
    assert made(tiny_gpt, model_type="llama", vocab_size=384, **SMALL).whole.config.vocab_size == 384
    one, same, other = (
        next(iter(made(tiny_gpt, seed, model_type="llama", **SMALL).parameters())) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_every_wrong_setting_is_named(tiny_gpt: Path) -> None:
    found = said(tiny_gpt, model_type="llama", hiden_size=64, vocab_size=5)
    assert "model.config.hiden_size: llama has no setting 'hiden_size'. Did you mean `hidden_size`?" in found[0]
    assert "5, but the tokenizer has 320 tokens" in found[1]
    assert "Did you mean `llama`?" in said(tiny_gpt, model_type="lama")[0]
    assert "hidden size (63) is not a multiple" in said(tiny_gpt, model_type="llama", hidden_size=63)[0]
    assert "encoder-decoder" in said(tiny_gpt, model_type="t5")[0]
    assert "no language-model head" in said(tiny_gpt, model_type="vit")[0]


def test_an_encoder_has_no_language_model_head(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"lacks .* weights"):
        load_trunk(Model(pretrained=str(tiny / "model")), 0, language=True)


def test_texts_longer_than_the_model_knows_are_refused(tiny_gpt: Path, tiny: Path) -> None:
    trunk = load_trunk(Model(pretrained=str(tiny_gpt / "model")), 0)
    require_positions(trunk.model, 128, trunk.first_position)
    with pytest.raises(InputError, match="129 tokens, but the model knows 128 positions"):
        require_positions(trunk.model, 129, trunk.first_position)
    with pytest.raises(InputError, match="knows 126 positions"):
        require_positions(trunk.model, 127, 2)


def test_names_are_those_of_the_saved_model(tiny_gpt: Path) -> None:
    for language, heads in ((True, SPECS), (False, {})):
        trunk = load_trunk(Model(pretrained=str(tiny_gpt / "model")), 0, language=language)
        model = MultiTaskModel(trunk, heads)
        saved, state = model.saved_names(), trunk.whole.state_dict()
        assert set(saved.values()) == set(state) - {"lm_head.weight"} | ({"lm_head.weight"} if language else set())
        for ours, theirs in saved.items():
            assert model.state_dict()[ours].data_ptr() == state[theirs].data_ptr()


def test_arithmetic_and_sizes(tiny_gpt: Path) -> None:
    """2 forward and 4 backward per weight of a product; half the backward for weights that adapters leave frozen."""
    full = MultiTaskModel(load_trunk(Model(pretrained=str(tiny_gpt / "model")), 0, language=True), SPECS)
    whole, trained = parameters_of(full)
    assert whole == trained == sum(p.numel() for p in full.trunk.whole.parameters())
    assert training_flops_per_token(full) == 6 * whole, "the tied table is the head: multiplied, and looked up"
    lora = Model(pretrained=str(tiny_gpt / "model"), lora=Lora(rank=4))
    adapted = MultiTaskModel(load_trunk(lora, 0, language=True), SPECS)
    total, learned = parameters_of(adapted)
    assert total == whole + learned
    assert 0 < learned < whole
    assert training_flops_per_token(adapted) == 4 * whole + 6 * learned
