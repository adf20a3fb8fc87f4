"""The model as data: read from a real model on the meta device, or made from numbers, it is the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import make_model, make_recipe
from tiny_gpt import make_gpt_recipe

from lmrecipes.models.loading import load_trunk
from lmrecipes.models.mlp import random_trunk
from lmrecipes.models.shapes import shapes_of
from lmrecipes.planning.shapes import perceptron, transformer
from lmrecipes.recipe import Mlp, Model, Recipe

TASKS = {"short": 1, "long": 3, "rare": 4}


def test_an_encoder_from_numbers_is_the_encoder_that_is_read(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    recipe = Recipe.model_validate(make_recipe(tmp_path))
    made = transformer(layers=2, width=32, heads=4, inner=64, vocabulary=35, positions=64, tasks=TASKS)
    read = shapes_of(recipe, TASKS)
    assert read.averaged
    assert read.trained == made.trained
    assert read.attentions == made.attentions
    assert read.norms == made.norms
    assert read.activations == made.activations
    assert sorted(size for _, size in read.tables) == sorted(size for _, size in made.tables)
    assert [p.name for p in read.products] == [p.name for p in made.products]
    for one, other in zip(read.products, made.products, strict=True):
        assert (one.inputs, one.outputs, one.stream, one.per, one.bias) == (
            other.inputs, other.outputs, other.stream, other.per, other.bias,
        )  # fmt: skip
    query, key, value, after, *_ = read.products
    assert query.reads == key.reads == value.reads != after.reads


def test_a_perceptron_from_numbers_has_the_models_weights() -> None:
    made = perceptron(784, (128, 64), {"digits": 10})
    trunk = random_trunk(Mlp(hidden=(128, 64)), 0)
    assert made.trained == sum(weight.numel() for weight in trunk.parameters()) + 65 * 10
    assert [(p.name, p.inputs, p.outputs, p.into) for p in made.products] == [
        ("layers.0", 784, 128, False),
        ("layers.1", 128, 64, True),
        ("heads.digits.linear", 64, 10, True),
    ]
    recipe = {"name": "mlp", "tasks": {"digits": {"kind": "classification", "source": {"files": "x", "ids": "ids"}}}}
    assert shapes_of(Recipe.model_validate({**recipe, "model": {"mlp": {"hidden": [128, 64]}}}), {"digits": 10}) == made


GPT2 = {"model_type": "gpt2", "vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
LLAMA = {
    "model_type": "llama", "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48,
}  # fmt: skip
QWEN = {**LLAMA, "model_type": "qwen3", "head_dim": 16}


@pytest.mark.parametrize("config", [GPT2, LLAMA, QWEN], ids=lambda c: c["model_type"])
def test_decoders_are_read(config: dict[str, Any]) -> None:
    tasks = {"lm": {"kind": "language_modelling", "source": {"files": "x"}}}
    recipe = Recipe.model_validate({"name": "r", "tasks": tasks}).model_copy(update={"model": Model(config=config)})
    read, trunk = shapes_of(recipe), load_trunk(Model(config=config), 0, language=True)
    assert read.trained == sum(weight.numel() for weight in trunk.whole.parameters())
    assert read.language is not None
    assert read.language.weight == 99 * 32
    assert [part.keys for part in read.attentions] == [4 if config is GPT2 else 2] * 2
    assert read.attentions[0].width == (16 if config is QWEN else 8)
    gated = config is not GPT2
    assert all(function.gated == gated and function.saved == (3 if gated else 4) for function in read.activations)
    assert read.rotary == (0 if config is GPT2 else read.attentions[0].width)
    down = next(p for p in read.products if p.name.endswith(("mlp.c_proj", "down_proj")))
    assert (down.inputs, down.outputs, down.stream) == (4 * 32 if config is GPT2 else 48, 32, False)
    norms = {norm.name.rpartition(".")[2]: norm for norm in read.norms}
    if config is QWEN:
        assert (norms["q_norm"].width, norms["q_norm"].stream) == (4 * 16, False)
    assert norms["norm" if gated else "ln_f"].rms == gated


def test_adapters_leave_the_trunks_weights_untrained(tiny_gpt: Path) -> None:
    recipe = Recipe.model_validate(make_gpt_recipe(tiny_gpt, **{"model.lora": {"rank": 2, "targets": ["q_proj"]}}))
    read = shapes_of(recipe)
    by_end = {product.name.split("layers.0.")[-1]: product for product in read.products}
    assert not by_end["mlp.down_proj"].trained
    assert by_end["self_attn.q_proj.lora_A.default"].trained
    assert by_end["self_attn.q_proj.lora_A.default"].outputs == 2
    assert read.frozen > 100 * 2 * 2 * (32 + 32) > read.trained > 0


def test_a_tokenizer_that_is_still_to_be_trained_counts_with_its_size(tiny_gpt: Path) -> None:
    changes = {"model.initialization": "scratch", "model.tokenizer_vocabulary": 1000}
    language = shapes_of(Recipe.model_validate(make_gpt_recipe(tiny_gpt, **changes))).language
    assert language is not None
    assert language.outputs == 1000
    config = {k: v for k, v in LLAMA.items() if k != "vocab_size"}
    made = {"config": config, "tokenizer_vocabulary": 1000, "pooling": "last"}
    other = shapes_of(Recipe.model_validate({**make_gpt_recipe(tiny_gpt), "model": made})).language
    assert other is not None
    assert other.outputs == 1000
