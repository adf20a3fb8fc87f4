"""Models as files that `transformers` and `peft` load: written from gathered weights, and read back whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lmrecipes.models.mlp import Perceptron, is_perceptron, load_perceptron, save_perceptron

SHARD = "5GB"
"""Largest file of weights; a larger model is cut into several, with an index."""


def save_whole(like: Any, weights: dict[str, Tensor], folder: Path, ends: Sequence[int] = ()) -> None:
    """Write a model of the class and configuration of `like` with these weights, by their names in its state dict.

    `like` itself may be partitioned, wrapped or have adapters: only its class and configurations are looked at.
    Tied weights are stored once, under the name that `from_pretrained` expects. ends: tokens at which generation stops,
    besides those at which it does already.
    """
    if isinstance(like, Perceptron):
        save_perceptron(like.config, weights, folder)
        return
    config = copy.deepcopy(like.config)
    if hasattr(config, "use_cache"):
        config.use_cache = True  # training needs none; without it generation computes every token again
    with torch.device("meta"):
        empty = type(like)(config)
    if empty.can_generate():
        empty.generation_config = generation = _stopping(copy.deepcopy(like.generation_config), ends)
        try:
            generation.save_pretrained(folder)
        except ValueError:  # a temperature without sampling: some models come so, but `transformers` saves none changed
            generation.do_sample = True
    empty.save_pretrained(folder, state_dict=dict(weights), max_shard_size=SHARD)


def turn_end(tokenizer: Any) -> list[int]:
    """The special token that ends the assistant's turn in a tokenizer's chat template; empty where none does."""
    from jinja2 import TemplateError

    said = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    try:
        text: str = tokenizer.apply_chat_template(said, tokenize=False)
    except TemplateError:  # one that wants other conversations
        return []
    after = tokenizer(text.rpartition("answer")[2], add_special_tokens=False)["input_ids"]
    special = {key for key, token in tokenizer.added_tokens_decoder.items() if token.special}
    return after[:1] if after and after[0] in special else []


def _stopping(generation: Any, ends: Sequence[int]) -> Any:
    """A generation configuration that stops at these tokens too."""
    own = generation.eos_token_id
    known = [own] if isinstance(own, int) else list(own or ())
    more = [token for token in dict.fromkeys(ends) if token not in known]
    if more:
        generation.eos_token_id = known + more if known or len(more) > 1 else more[0]
    return generation


def save_adapter(adapted: Any, weights: dict[str, Tensor], base: str, folder: Path) -> None:
    """Write the adapter of a `PeftModel` in peft's own format, from weights by their names in the adapted model.

    base: the name of the model that the adapter belongs to, as others can load it.
    """
    adapted.peft_config["default"].base_model_name_or_path = base
    named = {f"base_model.model.{name}": tensor for name, tensor in weights.items()}
    adapted.save_pretrained(folder, state_dict=named, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty form; the run's own card stands beside the merged model


def load_whole(name: str | Path, language: bool, attention: str) -> Any:
    """A whole model in fp32 on the CPU. Raises ValueError where its files and its class do not match."""
    from transformers import AutoModel, AutoModelForCausalLM

    if is_perceptron(name):
        return load_perceptron(name)
    kind = AutoModelForCausalLM if language else AutoModel
    model, found = kind.from_pretrained(
        name, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    wrong = {key: sorted(map(str, names)) for key, names in found.items() if names}
    if wrong:
        raise ValueError(f"{name} does not hold the weights of a {type(model).__name__}: {wrong}")
    return model.eval()


def load_adapted(base: str | Path, adapter: Path, language: bool, attention: str) -> Any:
    """A base model with peft's adapter beside it, in fp32 on the CPU."""
    from peft import PeftModel

    whole = load_whole(base, language, attention)
    return PeftModel.from_pretrained(whole, str(adapter), torch_device="cpu").eval()


def merged_weights(base: str | Path, adapter: Path, language: bool) -> dict[str, Tensor]:
    """The weights of a base model with the adapter's products added, by their names in its state dict."""
    merged: nn.Module = load_adapted(base, adapter, language, "eager").merge_and_unload()
    return dict(merged.state_dict())
